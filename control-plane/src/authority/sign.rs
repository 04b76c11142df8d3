//! Permit to certificate. Writes every field itself; nothing of the request but the public key gets in.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{
    Certificate, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber, date_time_ymd,
};

use super::{Authority, Identity};

/// How far certificates reach into the past, for clocks that are behind.
pub const BACKDATE: Duration = Duration::from_secs(60);

/// A name of a server beside its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostName {
    Dns(String),
    Ip(IpAddr),
}

impl HostName {
    /// An IP address where the text is one, else a DNS name.
    pub fn parse(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Dns(text.to_owned()), Self::Ip)
    }
}

impl Authority {
    /// Signs a leaf for `identity`, valid from a minute ago until `lifetime` from now, or until the signing certificate ends.
    ///
    /// `hosts` is empty for workloads; our own listeners add the names under which they are reached.
    ///
    /// # Errors
    /// When a name cannot stand in a certificate or the key cannot sign.
    pub fn sign_leaf(
        &self,
        key: &impl PublicKeyData,
        identity: &Identity,
        hosts: &[HostName],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Certificate, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        for host in hosts {
            params.subject_alt_names.push(match host {
                HostName::Ip(ip) => SanType::IpAddress(*ip),
                HostName::Dns(name) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(random_serial()?);
        params.not_before = date_time_ymd(1970, 1, 1) + since_1970(now - BACKDATE);
        params.not_after = date_time_ymd(1970, 1, 1) + since_1970((now + lifetime).min(self.ends));
        params.signed_by(key, &self.issuer)
    }
}

/// 127 random bits: positive, as RFC 5280 §4.1.2.2 asks, and never guessable.
pub(super) fn random_serial() -> Result<SerialNumber, rcgen::Error> {
    let mut bytes = [0_u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| rcgen::Error::RingUnspecified)?;
    bytes[0] = bytes[0] & 0x7f | 1;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Seconds since 1970, to be added to that day; earlier moments become 1970.
pub(super) fn since_1970(at: SystemTime) -> Duration {
    Duration::from_secs(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}

/// DER as PEM with lines of 64 characters (RFC 7468 §2).
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}
