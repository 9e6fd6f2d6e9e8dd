//! JWTs: what opens, and what does not.

use std::{fs, time::SystemTime};

use aws_lc_rs::{
    encoding::{AsDer as _, Pkcs8V1Der, PublicKeyX509Der},
    rsa::{KeyPair as RsaKeyPair, KeySize},
    signature::{Ed25519KeyPair, KeyPair as _},
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

use crate::access::Guarded;

const SECRET: &str = "a secret of our own, which is long"; // 34 bytes
const UNKNOWN: &str = "The token is not known.";

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// Claims that open everything.
fn claims() -> Value {
    let rights = json!({"verbs": ["read", "append"], "streams": ["*"]});
    json!({"sub": "ada", "exp": now() + 60, "streamkeep": rights})
}

/// The same, with another member; null takes it away.
fn claims_with(member: &str, value: Value) -> Value {
    let mut claims = claims();
    if value.is_null() {
        claims.as_object_mut().unwrap().remove(member);
    } else {
        claims[member] = value;
    }
    claims
}

fn signed(algorithm: Algorithm, key_id: Option<&str>, claims: &Value, key: &EncodingKey) -> String {
    let header = Header { kid: key_id.map(str::to_owned), ..Header::new(algorithm) };
    encode(&header, claims, key).unwrap()
}

fn pem(kind: &str, der: &[u8]) -> String {
    let lines: Vec<_> =
        STANDARD.encode(der).as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", lines.join("\n"))
}

/// A key that signs, and what the service is to know of it.
struct Pair {
    private: EncodingKey,
    public_pem: String,
    public_jwk: Value,
}

fn rsa(key_id: &str) -> Pair {
    let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let private: Pkcs8V1Der<'_> = pair.as_der().unwrap();
    let public: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
    let component = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let (n, e) = (pair.public_key().modulus(), pair.public_key().exponent());
    Pair {
        private: EncodingKey::from_rsa_pem(pem("PRIVATE KEY", private.as_ref()).as_bytes()).unwrap(),
        public_pem: pem("PUBLIC KEY", public.as_ref()),
        public_jwk: json!({
            "kty": "RSA", "kid": key_id, "use": "sig", "alg": "RS256",
            "n": component(n.big_endian_without_leading_zero()), "e": component(e.big_endian_without_leading_zero()),
        }),
    }
}

fn ed25519(key_id: &str) -> Pair {
    let pair = Ed25519KeyPair::generate().unwrap();
    let private: Pkcs8V1Der<'_> = pair.as_der().unwrap();
    let public: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
    let x = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
    Pair {
        private: EncodingKey::from_ed_pem(pem("PRIVATE KEY", private.as_ref()).as_bytes()).unwrap(),
        public_pem: pem("PUBLIC KEY", public.as_ref()),
        public_jwk: json!({"kty": "OKP", "crv": "Ed25519", "kid": key_id, "x": x}),
    }
}

/// A service that knows this file of keys.
async fn with_keys(text: &str, issuer: Option<&str>, audience: Option<&str>) -> Guarded {
    Guarded::start_with(|folder, files| {
        let file = folder.path().join("jwt-keys");
        fs::write(&file, text).unwrap();
        files.jwt_keys = Some(file);
        files.jwt_issuer = issuer.map(str::to_owned);
        files.jwt_audience = audience.map(str::to_owned);
    })
    .await
}

async fn opens(guarded: &Guarded, token: &str) {
    // Twice: the second time it is remembered.
    for _ in 0..2 {
        guarded.get(token, "/events").await.expect(200);
    }
}

async fn refused(guarded: &Guarded, token: &str, words: &str) {
    for _ in 0..2 {
        Guarded::refused(guarded.get(token, "/events").await, words);
    }
}

fn secret() -> (String, EncodingKey) {
    let text = SECRET.replace([' ', ','], "-");
    let key = EncodingKey::from_secret(text.as_bytes());
    (text, key)
}

#[tokio::test]
async fn claims_are_judged() {
    let (text, key) = secret();
    let guarded = with_keys(&format!("{text}\n"), Some("us"), Some("events")).await;
    let with = |member: &str, value: Value| {
        let mut claims = claims_with("iss", json!("us"));
        claims["aud"] = json!(["events", "other"]);
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(member);
        } else {
            claims[member] = value;
        }
        signed(Algorithm::HS256, None, &claims, &key)
    };
    opens(&guarded, &with("sub", json!("grace"))).await;
    opens(&guarded, &with("sub", Value::Null)).await;
    opens(&guarded, &with("nbf", json!(now() - 5))).await;
    refused(&guarded, &with("exp", json!(now() - 60)), "The token has expired.").await;
    refused(&guarded, &with("nbf", json!(now() + 600)), "The token is not yet valid.").await;
    refused(&guarded, &with("iss", json!("them")), "The token is of another issuer.").await;
    refused(&guarded, &with("aud", json!("other")), "The token is for another audience.").await;
    let rights = json!({"verbs": ["write"]});
    let further = json!({"verbs": ["read"], "streams": ["*"], "admin": true});
    for (member, value) in [
        ("exp", Value::Null),
        ("exp", json!("soon")),
        ("iss", Value::Null),
        ("aud", Value::Null),
        ("sub", json!(["ada"])),
        ("streamkeep", rights),
        ("streamkeep", further),
        ("streamkeep", json!({"verbs": ["read"], "streams": ["a*b"]})),
    ] {
        let token = with(member, value);
        refused(&guarded, &token, "The claims of the token lack something, or cannot be read.").await;
    }
    // A good token that says nothing about us opens nothing.
    guarded.get(&with("streamkeep", Value::Null), "/events").await.expect_problem(403, "forbidden");
    let orders = with("streamkeep", json!({"verbs": ["read", "append"], "streams": ["order*"]}));
    guarded.get(&orders, "/events?category=order").await.expect(200);
    guarded.get(&orders, "/events").await.expect_problem(403, "forbidden");
    guarded.append(&orders, "order-1").await.expect(201);
    let long = with("padding", json!("x".repeat(7_000)));
    refused(&guarded, &long, "The token is too long.").await;
}

/// Where no audience is ours, a token for one is for somebody else (RFC 7519 §4.1.3).
#[tokio::test]
async fn a_token_for_others_is_refused() {
    let (text, key) = secret();
    let guarded = with_keys(&text, None, None).await;
    opens(&guarded, &signed(Algorithm::HS256, None, &claims(), &key)).await;
    let other = signed(Algorithm::HS256, None, &claims_with("aud", json!("other")), &key);
    refused(&guarded, &other, "The token is for another audience.").await;
    let wrong = EncodingKey::from_secret(text.to_uppercase().as_bytes());
    refused(&guarded, &signed(Algorithm::HS256, None, &claims(), &wrong), UNKNOWN).await;
    // Other hashes with the same secret.
    refused(&guarded, &signed(Algorithm::HS512, None, &claims(), &key), UNKNOWN).await;
}

#[tokio::test]
async fn a_token_does_not_choose_its_algorithm() {
    for (pair, algorithm) in [(rsa("r"), Algorithm::RS256), (ed25519("e"), Algorithm::EdDSA)] {
        let guarded = with_keys(&pair.public_pem, None, None).await;
        let good = signed(algorithm, Some("any"), &claims(), &pair.private);
        opens(&guarded, &good).await;
        // The public key, which everybody knows, as a secret.
        for secret in [&pair.public_pem, pair.public_pem.trim()] {
            let forged = signed(Algorithm::HS256, None, &claims(), &EncodingKey::from_secret(secret.as_bytes()));
            refused(&guarded, &forged, UNKNOWN).await;
        }
        let parts: Vec<_> = good.split('.').collect();
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let stronger = part(&claims_with("sub", json!("eve")));
        let header = |name: &str| part(&json!({"typ": "JWT", "alg": name}));
        for forged in [
            format!("{}.{stronger}.{}", parts[0], parts[2]),
            format!("{}.{}.", parts[0], parts[1]),
            format!("{}.{}.", header("none"), parts[1]),
            format!("{}.{}.{}", header("none"), parts[1], parts[2]),
            format!("{}.{}.{}", header("HS256"), parts[1], parts[2]),
            format!("{}.{}.{}", header("ES256"), parts[1], parts[2]),
            format!("{good}.{}", parts[2]),
        ] {
            refused(&guarded, &forged, UNKNOWN).await;
        }
    }
}

#[tokio::test]
async fn one_of_several_keys_is_enough() {
    let (first, second, edwards, stranger) = (rsa("first"), rsa("second"), ed25519("edwards"), rsa("first"));
    let shared = json!({"kty": "oct", "kid": "shared", "k": URL_SAFE_NO_PAD.encode(SECRET)});
    let others = [json!({"kty": "EC", "crv": "P-256", "kid": "ec", "x": "AA", "y": "AA"}), json!({"kty": "new"})];
    let mut encrypts = second.public_jwk.clone();
    (encrypts["use"], encrypts["kid"]) = (json!("enc"), json!("encrypts"));
    let mut keys =
        vec![first.public_jwk.clone(), second.public_jwk.clone(), edwards.public_jwk.clone(), shared, encrypts];
    keys.extend(others);
    let guarded = with_keys(&json!({"keys": keys}).to_string(), None, None).await;
    let (rs256, claims) = (Algorithm::RS256, claims());
    for key_id in [Some("second"), None] {
        opens(&guarded, &signed(rs256, key_id, &claims, &second.private)).await;
    }
    opens(&guarded, &signed(rs256, Some("first"), &claims, &first.private)).await;
    opens(&guarded, &signed(Algorithm::EdDSA, Some("edwards"), &claims, &edwards.private)).await;
    let secret = EncodingKey::from_secret(SECRET.as_bytes());
    opens(&guarded, &signed(Algorithm::HS256, Some("shared"), &claims, &secret)).await;
    for key_id in [Some("first"), Some("nobody"), Some("encrypts")] {
        refused(&guarded, &signed(rs256, key_id, &claims, &second.private), UNKNOWN).await;
    }
    refused(&guarded, &signed(rs256, Some("first"), &claims, &stranger.private), UNKNOWN).await;
    refused(&guarded, &signed(Algorithm::RS512, Some("first"), &claims, &first.private), UNKNOWN).await;
    // What must be understood is not (RFC 7515 §4.1.11).
    let critical = Header { crit: Some(vec!["exp".to_owned()]), ..Header::new(Algorithm::HS256) };
    refused(&guarded, &encode(&critical, &claims, &secret).unwrap(), UNKNOWN).await;
    // Keys of both kinds hold at once.
    guarded.get(&guarded.admin, "/events").await.expect(200);
}
