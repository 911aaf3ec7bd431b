//! The certificates that clients of a recorded step are shown: of an authority that is made for one step, and is gone with it.
//!
//! Its key is in this process's memory alone, and its certificate in a file that is mounted while the step runs. So neither is in a
//! layer, in the store or in `jiji.lock`, and nobody else trusts it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;

use crate::build::stage::turns::held;

/// How many hosts' certificates are kept. A step that asks for more gets them made again.
const HOSTS: usize = 256;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// It could not be made: of a name that is none, for one.
    #[error("make a certificate for a recorded step")]
    Made(#[from] rcgen::Error),
    /// It could not be used.
    #[error("use a certificate of a recorded step")]
    Used(#[from] rustls::Error),
}

/// An authority that one step's clients trust.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    /// The key of all hosts: they are one program.
    key: KeyPair,
    hosts: Mutex<BTreeMap<String, Arc<ServerConfig>>>,
}

impl Authority {
    pub(super) fn new() -> Result<Self, AuthorityError> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "jiji, for one recorded step");
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate, key: KeyPair::generate()?, hosts: Mutex::default() })
    }

    /// What clients are to trust.
    pub(super) fn certificate(&self) -> &str {
        &self.certificate
    }

    /// How to be a host.
    pub(super) fn host(&self, name: &str) -> Result<Arc<ServerConfig>, AuthorityError> {
        let mut hosts = held(&self.hosts);
        if let Some(known) = hosts.get(name) {
            return Ok(Arc::clone(known));
        }
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, "a host of a recorded step");
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&self.key, &self.issuer)?.der().clone();
        let key = PrivatePkcs8KeyDer::from(self.key.serialize_der()).into();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let mut config = config.with_no_client_auth().with_single_cert(vec![certificate], key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        if hosts.len() >= HOSTS {
            hosts.clear();
        }
        Ok(Arc::clone(hosts.entry(name.to_owned()).or_insert(Arc::new(config))))
    }
}
