//! A service's options: as the proxy's state file has them, and as the flags of `kamal-proxy deploy` say them.
//!
//! The proxy replaces all options at every deploy, and a flag left out falls back to its default (internal/cmd/deploy.go), so the full
//! set is read and the full set is sent.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::bindings::jiji::plan::types::Answer;

/// Where the proxy keeps certificates (internal/server/config.go).
const ACME_CACHE: &str = "/home/kamal-proxy/.config/kamal-proxy/certs";
/// What `--tls-staging` stands for (internal/server/cert.go).
const ACME_STAGING: &str = "https://acme-staging-v02.api.letsencrypt.org/directory";

const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MILLISECOND;

/// All options of a service (`ServiceOptions` in internal/server/service.go, `TargetOptions` in internal/server/target.go). Durations
/// are nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    pub hosts: Vec<String>,
    pub path_prefixes: Vec<String>,
    pub strip_prefix: bool,
    pub tls: bool,
    pub tls_redirect: bool,
    pub tls_certificate: String,
    pub tls_private_key: String,
    pub acme_directory: String,
    pub acme_cache: String,
    pub canonical_host: String,
    pub error_pages: String,
    pub writer_affinity: u64,
    pub read_targets_accept_websockets: bool,
    pub health_path: String,
    pub health_port: u64,
    pub health_interval: u64,
    pub health_timeout: u64,
    pub health_host: String,
    pub response_timeout: u64,
    pub buffer_requests: bool,
    pub buffer_responses: bool,
    pub buffer_memory: u64,
    pub max_request_body: u64,
    pub max_response_body: u64,
    pub log_request_headers: Vec<String>,
    pub log_response_headers: Vec<String>,
    pub forward_headers: bool,
    pub scope_cookie_paths: bool,
}

/// The defaults of v0.9.2 (internal/server/service.go), but for the health check: jiji's own probes have passed before, so this one
/// only confirms that the proxy reaches the target, and asks more often to do so within the deploy timeout.
impl Default for Options {
    fn default() -> Self {
        Self {
            hosts: Vec::new(),
            path_prefixes: vec!["/".to_owned()],
            strip_prefix: true,
            tls: false,
            tls_redirect: true,
            tls_certificate: String::new(),
            tls_private_key: String::new(),
            acme_directory: String::new(),
            acme_cache: ACME_CACHE.to_owned(),
            canonical_host: String::new(),
            error_pages: String::new(),
            writer_affinity: SECOND,
            read_targets_accept_websockets: false,
            health_path: "/".to_owned(),
            health_port: 0,
            health_interval: 500 * MILLISECOND,
            health_timeout: 2 * SECOND,
            health_host: String::new(),
            response_timeout: 30 * SECOND,
            buffer_requests: false,
            buffer_responses: false,
            buffer_memory: 1024 * 1024,
            max_request_body: 0,
            max_response_body: 0,
            log_request_headers: Vec::new(),
            log_response_headers: Vec::new(),
            forward_headers: true,
            scope_cookie_paths: false,
        }
    }
}

impl Options {
    /// Flags of `kamal-proxy deploy` that give exactly these options.
    pub fn flags(&self) -> Vec<String> {
        let mut flags = Vec::new();
        let mut flag = |name: &str, value: &str| flags.push(format!("--{name}={value}"));
        for host in &self.hosts {
            flag("host", host);
        }
        for prefix in &self.path_prefixes {
            flag("path-prefix", prefix);
        }
        let bool = |value: bool| if value { "true" } else { "false" };
        flag("strip-path-prefix", bool(self.strip_prefix));
        // On a path below the root TLS follows the root's service, and the flag is refused (internal/cmd/deploy.go,
        // internal/server/service_map.go).
        let tls = self.tls && self.is_root();
        flag("tls", bool(tls));
        if tls {
            flag("tls-redirect", bool(self.tls_redirect));
            flag("tls-acme-cache-path", &self.acme_cache);
            if self.acme_directory == ACME_STAGING {
                flag("tls-staging", "true");
            }
            if !self.tls_certificate.is_empty() {
                flag("tls-certificate-path", &self.tls_certificate);
                flag("tls-private-key-path", &self.tls_private_key);
            }
        }
        if !self.canonical_host.is_empty() {
            flag("canonical-host", &self.canonical_host);
        }
        if !self.error_pages.is_empty() {
            flag("error-pages", &self.error_pages);
        }
        flag("writer-affinity-timeout", &duration(self.writer_affinity));
        flag("read-target-websockets", bool(self.read_targets_accept_websockets));
        flag("health-check-path", &self.health_path);
        flag("health-check-port", &self.health_port.to_string());
        flag("health-check-interval", &duration(self.health_interval));
        flag("health-check-timeout", &duration(self.health_timeout));
        if !self.health_host.is_empty() {
            flag("health-check-host", &self.health_host);
        }
        flag("target-timeout", &duration(self.response_timeout));
        flag("buffer-requests", bool(self.buffer_requests));
        flag("buffer-responses", bool(self.buffer_responses));
        flag("buffer-memory", &self.buffer_memory.to_string());
        // Refused without buffering, whatever the value (internal/cmd/deploy.go).
        if self.buffer_requests {
            flag("max-request-body", &self.max_request_body.to_string());
        }
        if self.buffer_responses {
            flag("max-response-body", &self.max_response_body.to_string());
        }
        for header in &self.log_request_headers {
            flag("log-request-header", header);
        }
        for header in &self.log_response_headers {
            flag("log-response-header", header);
        }
        flag("forward-headers", bool(self.forward_headers));
        flag("scope-cookie-paths", bool(self.scope_cookie_paths));
        flags
    }

    fn is_root(&self) -> bool {
        self.path_prefixes.iter().any(|prefix| prefix == "/")
    }

    /// Whether the proxy would do the same with both.
    pub fn same(&self, other: &Self) -> bool {
        let level = |options: &Self| {
            let mut options = options.clone();
            if !options.is_root() {
                // Copied from the root's service (internal/server/service_map.go).
                (options.tls, options.tls_redirect) = (false, true);
            }
            if !options.tls {
                options.acme_directory.clear();
                options.acme_cache.clear();
                options.tls_certificate.clear();
                options.tls_private_key.clear();
                options.tls_redirect = true;
            }
            options
        };
        self == other || level(self) == level(other)
    }
}

/// A service in the state file (`marshalledService` in internal/server/service.go).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// Its live targets, `ADDRESS:PORT`.
    pub targets: Vec<String>,
    /// Its options.
    pub options: Options,
}

/// The entries of the state file, by service. Empty where the file is not there or is torn: it is truncated and written in place
/// (`saveStateSnapshot` in internal/server/router.go). An entry that cannot be read is as good as none.
pub fn read(answer: &Answer) -> BTreeMap<String, Saved> {
    let Answer::File(file) = answer else { return BTreeMap::new() };
    let Some(content) = file.content.as_deref() else { return BTreeMap::new() };
    // Most files are read whole at once; where one entry is odd, each is read for itself.
    if let Ok(entries) = serde_json::from_str::<Vec<Entry>>(content) {
        // The first of a name counts.
        return entries.into_iter().rev().map(|entry| (entry.name.clone(), entry.saved())).collect();
    }
    let Ok(Value::Array(entries)) = serde_json::from_str(content) else { return BTreeMap::new() };
    let mut saved = BTreeMap::new();
    for value in entries {
        let Some(name) = value["name"].as_str().map(str::to_owned) else { continue };
        saved.entry(name).or_insert_with(|| serde_json::from_value::<Entry>(value).ok().map(Entry::saved));
    }
    saved.into_iter().filter_map(|(name, saved)| Some((name, saved?))).collect()
}

/// An entry of the state file, as far as it is looked at.
#[derive(Deserialize)]
struct Entry {
    name: String,
    #[serde(default)]
    active_targets: Texts,
    options: EntryOptions,
    target_options: EntryTarget,
}

#[derive(Deserialize)]
struct EntryOptions {
    #[serde(default)]
    hosts: Texts,
    #[serde(default)]
    path_prefixes: Texts,
    strip_prefix: bool,
    tls_enabled: bool,
    tls_redirect: bool,
    tls_certificate_path: String,
    tls_private_key_path: String,
    acme_directory: String,
    acme_cache_path: String,
    canonical_host: String,
    error_page_path: String,
    writer_affinity_timeout: u64,
    read_targets_accept_websockets: bool,
}

#[derive(Deserialize)]
struct EntryTarget {
    health_check_config: EntryHealth,
    response_timeout: u64,
    buffer_requests: bool,
    buffer_responses: bool,
    max_memory_buffer_size: u64,
    max_request_body_size: u64,
    max_response_body_size: u64,
    #[serde(default)]
    log_request_headers: Texts,
    #[serde(default)]
    log_response_headers: Texts,
    forward_headers: bool,
    scope_cookie_paths: bool,
}

#[derive(Deserialize)]
struct EntryHealth {
    path: String,
    port: u64,
    interval: u64,
    timeout: u64,
    host: String,
}

/// A list of texts. Go writes an empty one as `null`.
type Texts = Option<Vec<String>>;

impl Entry {
    fn saved(self) -> Saved {
        let Self { options, target_options: target, .. } = self;
        let health = target.health_check_config;
        // One empty text stands for all hosts (`NormalizeHosts` in internal/server/service_map.go).
        let mut hosts = options.hosts.unwrap_or_default();
        hosts.retain(|host| !host.is_empty());
        Saved {
            targets: self.active_targets.unwrap_or_default(),
            options: Options {
                hosts,
                path_prefixes: options.path_prefixes.unwrap_or_default(),
                strip_prefix: options.strip_prefix,
                tls: options.tls_enabled,
                tls_redirect: options.tls_redirect,
                tls_certificate: options.tls_certificate_path,
                tls_private_key: options.tls_private_key_path,
                acme_directory: options.acme_directory,
                acme_cache: options.acme_cache_path,
                canonical_host: options.canonical_host,
                error_pages: options.error_page_path,
                writer_affinity: options.writer_affinity_timeout,
                read_targets_accept_websockets: options.read_targets_accept_websockets,
                health_path: health.path,
                health_port: health.port,
                health_interval: health.interval,
                health_timeout: health.timeout,
                health_host: health.host,
                response_timeout: target.response_timeout,
                buffer_requests: target.buffer_requests,
                buffer_responses: target.buffer_responses,
                buffer_memory: target.max_memory_buffer_size,
                max_request_body: target.max_request_body_size,
                max_response_body: target.max_response_body_size,
                log_request_headers: target.log_request_headers.unwrap_or_default(),
                log_response_headers: target.log_response_headers.unwrap_or_default(),
                forward_headers: target.forward_headers,
                scope_cookie_paths: target.scope_cookie_paths,
            },
        }
    }
}

/// A duration as Go reads it (`time.ParseDuration`).
pub fn duration(nanoseconds: u64) -> String {
    if nanoseconds.is_multiple_of(SECOND) {
        format!("{}s", nanoseconds / SECOND)
    } else if nanoseconds.is_multiple_of(MILLISECOND) {
        format!("{}ms", nanoseconds / MILLISECOND)
    } else {
        format!("{nanoseconds}ns")
    }
}

/// Nanoseconds of some milliseconds.
pub fn milliseconds(milliseconds: u32) -> u64 {
    u64::from(milliseconds) * MILLISECOND
}

/// Nanoseconds of some seconds.
pub fn seconds(seconds: u32) -> u64 {
    u64::from(seconds) * SECOND
}
