//! JWTs (RFC 7519), signed by HS256, RS256 or EdDSA (Ed25519) with a key of the file: a JWKS (RFC 7517), a public key in
//! PEM, or a secret in text. The key decides the algorithm, never the token.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header,
    errors::ErrorKind,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse},
};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::grant::{Grant, Rights};

/// How far clocks may be apart, in seconds.
const LEEWAY_SECS: u64 = 30;
/// Longest token, in bytes.
const TOKEN_MAX: usize = 8 * 1024;
/// Most tokens whose verification is remembered.
const SEEN_MAX: usize = 1_024;
/// Shortest secret of HS256, in bytes (RFC 7518 §3.2).
const SECRET_MIN: usize = 32;

/// A key that signs.
struct TokenKey {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Claims {
    exp: f64,
    sub: Option<String>,
    #[serde(default)]
    streamkeep: Rights,
}

/// A token that was verified, until it expires.
struct Seen {
    until_ms: u64,
    grant: Arc<Grant>,
}

/// What verifies JWTs.
pub struct Tokens {
    keys: Vec<TokenKey>,
    issuer: Option<String>,
    audience: Option<String>,
    /// By their SHA-256, for a signature costs more than a hash.
    seen: Mutex<HashMap<[u8; 32], Seen>>,
}

impl Tokens {
    /// Reads a file of keys. Where an issuer or an audience is given, every token must name it.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn parse(text: &str, issuer: Option<String>, audience: Option<String>) -> Result<Self, String> {
        let keys = keys(text.trim())?;
        Ok(Self { keys, issuer, audience, seen: Mutex::default() })
    }

    /// How many keys there are that can be used.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whose token this is.
    ///
    /// # Errors
    /// What is wrong, in words for the client. Of a token that we have no key for nothing is told.
    pub fn grant(&self, token: &str, now_ms: u64) -> Result<Arc<Grant>, &'static str> {
        if token.len() > TOKEN_MAX {
            return Err("The token is too long.");
        }
        let hash: [u8; 32] = Sha256::digest(token).into();
        if let Some(seen) = self.seen().get(&hash).filter(|seen| now_ms < seen.until_ms) {
            return Ok(Arc::clone(&seen.grant));
        }
        let Claims { exp, sub, streamkeep: rights } = self.verify(token)?;
        let grant = Arc::new(Grant { who: sub.unwrap_or_else(|| "a JWT".to_owned()), rights });
        let until = Duration::try_from_secs_f64(exp).map_or(u128::MAX, |until| until.as_millis());
        let seen = Seen { until_ms: u64::try_from(until).unwrap_or(u64::MAX), grant: Arc::clone(&grant) };
        self.remember(hash, seen, now_ms);
        Ok(grant)
    }

    fn verify(&self, token: &str) -> Result<Claims, &'static str> {
        const UNKNOWN: &str = "The token is not known.";
        let header = decode_header(token).map_err(|_| UNKNOWN)?;
        // An extension that must be understood (RFC 7515 §4.1.11): none is.
        if header.crit.is_some() {
            return Err(UNKNOWN);
        }
        let fits = |key: &&TokenKey| {
            let same_id = header.kid.is_none() || key.id.is_none() || key.id == header.kid;
            key.algorithm == header.alg && same_id
        };
        for key in self.keys.iter().filter(fits) {
            match decode(token, &key.key, &self.validation(key.algorithm)) {
                Ok(data) => return Ok(data.claims),
                Err(error) => match error.kind() {
                    // The signature is looked at first: it is good where something else is wrong.
                    ErrorKind::ExpiredSignature => return Err("The token has expired."),
                    ErrorKind::ImmatureSignature => return Err("The token is not yet valid."),
                    ErrorKind::InvalidIssuer => return Err("The token is of another issuer."),
                    ErrorKind::InvalidAudience => return Err("The token is for another audience."),
                    ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) | ErrorKind::Json(_) => {
                        return Err("The claims of the token lack something, or cannot be read.");
                    }
                    _ => {}
                },
            }
        }
        Err(UNKNOWN)
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = LEEWAY_SECS;
        validation.validate_nbf = true;
        let mut required = vec!["exp"];
        if let Some(issuer) = &self.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        // Without an audience of ours, a token that names one is for somebody else (RFC 7519 §4.1.3).
        if let Some(audience) = &self.audience {
            validation.set_audience(&[audience]);
            required.push("aud");
        }
        validation.set_required_spec_claims(&required);
        validation
    }

    fn remember(&self, hash: [u8; 32], token: Seen, now_ms: u64) {
        let mut seen = self.seen();
        if seen.len() >= SEEN_MAX {
            seen.retain(|_, one| now_ms < one.until_ms);
        }
        if seen.len() >= SEEN_MAX {
            seen.clear();
        }
        seen.insert(hash, token);
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], Seen>> {
        self.seen.lock().expect("nobody panics while it is locked")
    }
}

fn keys(text: &str) -> Result<Vec<TokenKey>, String> {
    if text.starts_with('{') {
        let set: Set = serde_json::from_str(text).map_err(|error| format!("it is no JWKS: {error}"))?;
        // Sets have keys for other purposes and algorithms too.
        let keys: Vec<_> = set.keys.into_iter().filter_map(|key| of_jwk(serde_json::from_value(key).ok()?)).collect();
        return match keys.len() {
            0 => Err("no key in it is of RS256, EdDSA (Ed25519), or HS256 with 32 bytes or more".to_owned()),
            _ => Ok(keys),
        };
    }
    let (algorithm, key) = if text.contains("-----") { of_pem(text)? } else { of_secret(text)? };
    Ok(vec![TokenKey { id: None, algorithm, key }])
}

fn of_jwk(jwk: Jwk) -> Option<TokenKey> {
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::OctetKey(_) => Algorithm::HS256,
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => Algorithm::EdDSA,
        _ => return None,
    };
    let common = &jwk.common;
    let signs = common.public_key_use.as_ref().is_none_or(|purpose| *purpose == PublicKeyUse::Signature);
    let for_it = common.key_algorithm.is_none_or(|name| name == KeyAlgorithm::from(algorithm));
    let key = DecodingKey::from_jwk(&jwk).ok().filter(|_| signs && for_it)?;
    let short = algorithm == Algorithm::HS256 && key.try_get_as_bytes().map_or(0, <[u8]>::len) < SECRET_MIN;
    (!short).then_some(TokenKey { id: jwk.common.key_id, algorithm, key })
}

fn of_pem(text: &str) -> Result<(Algorithm, DecodingKey), String> {
    if !text.starts_with("-----BEGIN PUBLIC KEY-----") && !text.starts_with("-----BEGIN RSA PUBLIC KEY-----") {
        return Err("in PEM it must be a PUBLIC KEY, and nothing else".to_owned());
    }
    let bytes = text.as_bytes();
    let rsa = DecodingKey::from_rsa_pem(bytes).map(|key| (Algorithm::RS256, key));
    let key = rsa.or_else(|_| DecodingKey::from_ed_pem(bytes).map(|key| (Algorithm::EdDSA, key)));
    key.map_err(|_| "the key in PEM is neither of RSA nor of Ed25519".to_owned())
}

/// Only text, and no key in base64: a public key would be a secret that everybody knows.
fn of_secret(text: &str) -> Result<(Algorithm, DecodingKey), String> {
    if STANDARD.decode(text).is_ok_and(|bytes| is_der(&bytes)) {
        return Err("it is a key without the lines that PEM has around it".to_owned());
    }
    if text.len() < SECRET_MIN || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!(
            "it is neither a JWKS nor a PEM, and as a secret it must be one line of {SECRET_MIN} or more characters"
        ));
    }
    Ok((Algorithm::HS256, DecodingKey::from_secret(text.as_bytes())))
}

/// Whether this is one SEQUENCE of ASN.1 in DER, as keys are.
fn is_der(bytes: &[u8]) -> bool {
    match bytes {
        [0x30, 0x82, high, low, rest @ ..] => usize::from(u16::from_be_bytes([*high, *low])) == rest.len(),
        [0x30, 0x81, length, rest @ ..] | [0x30, length, rest @ ..] => usize::from(*length) == rest.len(),
        _ => false,
    }
}
