//! The plugin's settings: `plugins.proxy.settings` in deploy.yml.

use serde_json::Value;

use crate::DEFAULT_IMAGE;
use crate::bindings::jiji::plan::types::Fault;

/// JSON Schema of the settings.
pub const SCHEMA: &str = r#"{"$schema":"https://json-schema.org/draft/2020-12/schema","additionalProperties":false,"properties":{"forward_headers":{"description":"Whether X-Forwarded-* headers of requests are trusted and passed on. Default: only where the proxy speaks no TLS.","type":"boolean"},"http_port":{"default":80,"description":"Port of the host for HTTP.","maximum":65535,"minimum":1,"type":"integer"},"https_port":{"default":443,"description":"Port of the host for HTTPS.","maximum":65535,"minimum":1,"type":"integer"},"image":{"default":"docker.io/basecamp/kamal-proxy:v0.9.2","description":"The image to run, with kamal-proxy v0.9.2 on its PATH.","type":"string"},"response_timeout":{"default":30,"description":"Seconds until an answer's header must have come.","maximum":86400,"minimum":1,"type":"integer"},"strip_path_prefix":{"default":true,"description":"Whether a service with a path prefix sees its requests without the prefix.","type":"boolean"}},"type":"object"}"#;

/// What a user can set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Port of the host for HTTP.
    pub http_port: u16,
    /// Port of the host for HTTPS.
    pub https_port: u16,
    /// The image to run.
    pub image: String,
    /// Seconds until an answer's header must have come.
    pub response_timeout: u32,
    /// Whether a service with a path prefix sees its requests without the prefix.
    pub strip_path_prefix: bool,
    /// Whether `X-Forwarded-*` headers of requests are trusted; none: only where the proxy speaks no TLS.
    pub forward_headers: Option<bool>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            http_port: 80,
            https_port: 443,
            image: DEFAULT_IMAGE.to_owned(),
            response_timeout: 30,
            strip_path_prefix: true,
            forward_headers: None,
        }
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
                "http_port" => port(value).map(|port| settings.http_port = port),
                "https_port" => port(value).map(|port| settings.https_port = port),
                "image" => image(value).map(|image| settings.image = image),
                "response_timeout" => seconds(value).map(|seconds| settings.response_timeout = seconds),
                "strip_path_prefix" => boolean(value).map(|strip| settings.strip_path_prefix = strip),
                "forward_headers" => boolean(value).map(|forward| settings.forward_headers = Some(forward)),
                _ => Err("unknown setting; known are `forward_headers`, `http_port`, `https_port`, `image`, \
                     `response_timeout` and `strip_path_prefix`"),
            };
            if let Err(reason) = result {
                faults.push(bad(key, reason));
            }
        }
        if settings.http_port == settings.https_port {
            faults.push(bad("https_port", "the same port as `http_port`"));
        }
        if faults.is_empty() { Ok(settings) } else { Err(faults) }
    }
}

/// An image reference without its tag and digest.
pub fn repository(reference: &str) -> &str {
    let name = reference.split_once('@').map_or(reference, |(name, _)| name);
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    match name[last..].find(':') {
        Some(colon) => &name[..last + colon],
        None => name,
    }
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

fn port(value: &Value) -> Result<u16, &'static str> {
    let port = value.as_u64().and_then(|port| u16::try_from(port).ok());
    port.filter(|port| *port > 0).ok_or("expected a port, 1 to 65535")
}

fn seconds(value: &Value) -> Result<u32, &'static str> {
    let seconds = value.as_u64().and_then(|seconds| u32::try_from(seconds).ok());
    seconds.filter(|seconds| (1..=86_400).contains(seconds)).ok_or("expected seconds, 1 to 86400")
}

fn boolean(value: &Value) -> Result<bool, &'static str> {
    value.as_bool().ok_or("expected `true` or `false`")
}

fn image(value: &Value) -> Result<String, &'static str> {
    match value.as_str() {
        Some(text) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic()) => Ok(text.to_owned()),
        _ => Err("expected an image reference"),
    }
}
