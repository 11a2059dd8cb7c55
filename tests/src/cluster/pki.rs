//! The cluster's certificate authority, its leaves, and the client configurations made of them.

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::fs;
use std::path::{Path, PathBuf};

pub(crate) struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new authority, and the key pair that signs service account tokens.
    pub(crate) fn create(folder: &Path) -> Result<Authority> {
        fs::create_dir_all(folder).context("create the folder of certificates")?;
        let key = KeyPair::generate().context("make a key")?;
        let mut params = CertificateParams::new(Vec::<String>::new()).context("describe the authority")?;
        params.distinguished_name.push(DnType::CommonName, "ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key).context("sign the authority")?;
        save(folder, "ca", &certificate, &key)?;
        let tokens = KeyPair::generate().context("make the key of tokens")?;
        fs::write(folder.join("sa.key"), tokens.serialize_pem()).context("write sa.key")?;
        fs::write(folder.join("sa.pub"), tokens.public_key_pem()).context("write sa.pub")?;
        Ok(Authority { folder: folder.to_path_buf(), issuer: Issuer::new(params, key) })
    }

    /// Makes `<file>.crt` and `<file>.key`.
    pub(crate) fn leaf(&self, file: &str, organization: Option<&str>, name: &str, alternatives: &[&str]) -> Result<()> {
        let key = KeyPair::generate().context("make a key")?;
        let alternatives: Vec<String> = alternatives.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(alternatives).context("describe a certificate")?;
        if let Some(organization) = organization {
            params.distinguished_name.push(DnType::OrganizationName, organization);
        }
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).context("sign a certificate")?;
        save(&self.folder, file, &certificate, &key)
    }

    /// A client certificate and the configuration that uses it: `<file>.kubeconfig` beside the folder of certificates.
    pub(crate) fn client(&self, file: &str, organization: Option<&str>, name: &str, server: &str) -> Result<()> {
        self.leaf(file, organization, name, &[])?;
        self.kubeconfig(file, server)
    }

    pub(crate) fn kubeconfig(&self, file: &str, server: &str) -> Result<()> {
        let pki = self.folder.display();
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: tandem-test\n\
             clusters: [{{name: tandem-test, cluster: {{server: \"{server}\", certificate-authority: \"{pki}/ca.crt\"}}}}]\n\
             users: [{{name: user, user: {{client-certificate: \"{pki}/{file}.crt\", client-key: \"{pki}/{file}.key\"}}}}]\n\
             contexts: [{{name: tandem-test, context: {{cluster: tandem-test, user: user}}}}]\n"
        );
        let folder = self.folder.parent().context("the folder of certificates has no parent")?;
        fs::write(folder.join(format!("{file}.kubeconfig")), text).context("write a kubeconfig")
    }
}

fn save(folder: &Path, file: &str, certificate: &Certificate, key: &KeyPair) -> Result<()> {
    fs::write(folder.join(format!("{file}.crt")), certificate.pem()).context("write a certificate")?;
    fs::write(folder.join(format!("{file}.key")), key.serialize_pem()).context("write a key")
}
