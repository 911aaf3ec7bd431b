//! The plugin's settings: `network.settings` in deploy.yml.

use serde_json::Value;

use crate::bindings::jiji::plan::types::Fault;

/// JSON Schema of the settings.
pub const SCHEMA: &str = r#"{"$schema":"https://json-schema.org/draft/2020-12/schema","additionalProperties":false,"properties":{"keepalive":{"default":25,"description":"Seconds between two signs of life, so that a firewall or a router on the way keeps the line open; 0 for none.","maximum":3600,"minimum":0,"type":"integer"},"mtu":{"default":1420,"description":"Most bytes of a packet in the mesh: 80 less than what the way between the servers takes.","maximum":9000,"minimum":1280,"type":"integer"},"port":{"default":51820,"description":"The UDP port that servers listen on.","maximum":65535,"minimum":1,"type":"integer"}},"type":"object"}"#;

/// What a user can set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The UDP port that servers listen on.
    pub port: u16,
    /// Most bytes of a packet.
    pub mtu: u16,
    /// Seconds between two signs of life.
    pub keepalive_s: u16,
}

impl Default for Settings {
    fn default() -> Self {
        // WireGuard takes 60 bytes over IPv4 and 80 over IPv6 of the 1500 of an Ethernet; routers forget a silent line after 30 s
        // (wg-quick(8), wg(8)).
        Self { port: 51820, mtu: 1420, keepalive_s: 25 }
    }
}

impl Settings {
    /// Reads settings, or says everything that is wrong with them. At least one fault where any.
    pub fn read(json: &str) -> Result<Self, Vec<Fault>> {
        let Ok(Value::Object(map)) = serde_json::from_str(json) else {
            return Err(vec![bad("", "expected an object")]);
        };
        let mut settings = Self::default();
        let mut faults = Vec::new();
        for (key, value) in &map {
            let result = match key.as_str() {
                "port" => number(value, 1, 65535).map(|port| settings.port = port).ok_or("expected a port, 1 to 65535"),
                "mtu" => number(value, 1280, 9000).map(|mtu| settings.mtu = mtu).ok_or("expected bytes, 1280 to 9000"),
                "keepalive" => {
                    number(value, 0, 3600).map(|it| settings.keepalive_s = it).ok_or("expected seconds, 0 to 3600")
                }
                _ => Err("unknown setting; known are `keepalive`, `mtu` and `port`"),
            };
            if let Err(reason) = result {
                faults.push(bad(key, reason));
            }
        }
        if faults.is_empty() { Ok(settings) } else { Err(faults) }
    }
}

fn number(value: &Value, least: u16, most: u16) -> Option<u16> {
    let number = value.as_u64().and_then(|number| u16::try_from(number).ok());
    number.filter(|number| (least..=most).contains(number))
}

fn bad(key: &str, reason: &str) -> Fault {
    Fault {
        code: "bad-setting".to_owned(),
        message: if key.is_empty() { reason.to_owned() } else { format!("`{key}`: {reason}") },
        hint: None,
        path: Some(if key.is_empty() {
            String::new()
        } else {
            format!("/{}", key.replace('~', "~0").replace('/', "~1"))
        }),
    }
}
