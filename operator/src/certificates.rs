//! The pair's own certificate authority and its two leaves. A leaf names exactly one member of one pair; each member
//! accepts exactly the other one. Keys live in Secrets and nowhere else.

use k8s_openapi::jiff::{Timestamp, Zoned, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};

const AUTHORITY_DAYS: i64 = 3650;
const LEAF_DAYS: i64 = 365;
/// A certificate is made anew when less than this is left of it.
const RENEW_BEFORE_DAYS: i64 = 120;
const DAY_SECONDS: i64 = 86_400;

/// A certificate and its key, both as PEM.
#[derive(Clone)]
pub struct Pem {
    /// The certificate.
    pub certificate: String,
    /// The key. Never logged.
    pub key: String,
}

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
#[error("make a certificate: {0}")]
pub struct CertificateError(#[from] rcgen::Error);

/// Makes the authority of a pair.
pub fn authority(pair: &str, now: Timestamp) -> Result<Pem, CertificateError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name.push(DnType::CommonName, format!("tandem pair {pair}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let date = |(year, month, day)| date_time_ymd(year, month, day);
    (params.not_before, params.not_after) = (date(day(now, -1)), date(day(now, AUTHORITY_DAYS)));
    let certificate = params.self_signed(&key)?;
    Ok(Pem { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// Makes a member's certificate, for both directions.
pub fn leaf(authority: &Pem, name: &str, now: Timestamp) -> Result<Pem, CertificateError> {
    let issuer = Issuer::from_ca_cert_pem(&authority.certificate, KeyPair::from_pem(&authority.key)?)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![name.to_string()])?;
    params.distinguished_name.push(DnType::CommonName, "tandem member");
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    let date = |(year, month, day)| date_time_ymd(year, month, day);
    (params.not_before, params.not_after) = (date(day(now, -1)), date(day(now, LEAF_DAYS)));
    let certificate = params.signed_by(&key, &issuer)?;
    Ok(Pem { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// Whether a certificate can be kept: readable, for this name (if one is asked for), and not about to end.
pub fn is_good(pem: &str, name: Option<&str>, now: Timestamp) -> bool {
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(pem.as_bytes()) else { return false };
    let Ok(certificate) = pem.parse_x509() else { return false };
    let left = certificate.validity().not_after.timestamp() - now.as_second();
    let named = name.is_none_or(|name| {
        certificate.subject_alternative_name().ok().flatten().is_some_and(|names| {
            names.value.general_names.iter().any(
                |general| matches!(general, x509_parser::extensions::GeneralName::DNSName(found) if *found == name),
            )
        })
    });
    left > RENEW_BEFORE_DAYS * DAY_SECONDS && named
}

/// Year, month and day so many days from now.
fn day(now: Timestamp, days: i64) -> (i32, u8, u8) {
    let seconds = now.as_second().saturating_add(days * DAY_SECONDS);
    let day: Zoned = Timestamp::from_second(seconds).unwrap_or(now).to_zoned(TimeZone::UTC);
    let part = |value: i8| u8::try_from(value).unwrap_or(1);
    (i32::from(day.year()), part(day.month()), part(day.day()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_is_good_for_its_own_name_until_it_is_nearly_over() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let later = |days: i64| Timestamp::from_second(now.as_second() + days * DAY_SECONDS).unwrap();
        let authority = authority("orders", now).unwrap();
        let leaf = leaf(&authority, "a.orders.shop.pair.tandem.dev", now).unwrap();
        assert!(is_good(&authority.certificate, None, now));
        assert!(is_good(&leaf.certificate, Some("a.orders.shop.pair.tandem.dev"), now));
        assert!(!is_good(&leaf.certificate, Some("b.orders.shop.pair.tandem.dev"), now));
        assert!(is_good(&leaf.certificate, None, later(LEAF_DAYS - RENEW_BEFORE_DAYS - 3)));
        assert!(!is_good(&leaf.certificate, None, later(LEAF_DAYS - RENEW_BEFORE_DAYS + 1)));
        assert!(!is_good("nonsense", None, now));
    }
}
