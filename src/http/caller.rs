//! Who calls: the client's address, also where gateways stand between.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, HeaderName, header};
use ipnet::IpNet;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address of a request's client, an extension of each request. Without trusted gateways, that of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller(pub IpAddr);

impl Caller {
    /// Reads `X-Forwarded-For` and `Forwarded` (RFC 7239) where the connection comes from a gateway that is trusted: the
    /// caller is the rightmost address that is none of theirs. Whatever stands left of it anybody may have written.
    pub fn of(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> Self {
        let peer = peer.to_canonical();
        if !is_trusted(peer, trusted) {
            return Self(peer);
        }
        let told = walk(peer, headers, &X_FORWARDED_FOR, trusted, address);
        let told_too = walk(peer, headers, &header::FORWARDED, trusted, forwarded_for);
        // Many gateways write one of the two, and pass the other on as it came. Where they disagree, one is not to be
        // believed, and nothing says which.
        match (told, told_too) {
            (Some(caller), Some(other)) if caller != other => Self(peer),
            (told, told_too) => Self(told.or(told_too).unwrap_or(peer)),
        }
    }
}

/// A network of gateways as in `10.0.0.0/8`, or the address of one.
///
/// # Errors
/// What it should have been.
pub fn parse_network(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    network.map_err(|_| "an address such as 10.0.0.7, or a network such as 10.0.0.0/8".to_owned())
}

fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|network| network.contains(&address))
}

/// Goes through the elements of a header from the right, as long as gateways told them. One that tells no address ends
/// it: then the caller is known up to the gateway that wrote this. `None` without such a header.
fn walk(
    peer: IpAddr,
    headers: &HeaderMap,
    name: &HeaderName,
    trusted: &[IpNet],
    address: fn(&str) -> Option<IpAddr>,
) -> Option<IpAddr> {
    let fields = headers.get_all(name);
    fields.iter().next()?;
    let mut caller = peer;
    // In bytes, so that what a client wrote to the left does not spoil what a gateway added to it.
    let elements = fields.iter().rev().flat_map(|field| field.as_bytes().rsplit(|byte| *byte == b','));
    for element in elements {
        let element = std::str::from_utf8(element).unwrap_or_default();
        let Some(told) = address(element.trim()) else { break };
        caller = told;
        if !is_trusted(caller, trusted) {
            break;
        }
    }
    Some(caller)
}

/// An address, with or without a port; one of IPv6 may stand in brackets.
fn address(text: &str) -> Option<IpAddr> {
    let bare = || text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text).parse().ok();
    let address: Option<IpAddr> = text.parse().map(|with_port: SocketAddr| with_port.ip()).ok().or_else(bare);
    address.map(|address| address.to_canonical())
}

/// The `for` of an element. It was cut at commas, quoted ones too, for a client could open a quote to the left that
/// nobody closes; so values that have a quote or an escape inside, as the pieces of one that was cut have, count as none.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let mut told = None;
    for pair in element.split(';') {
        let (name, value) = pair.trim().split_once('=')?;
        let value = value.strip_prefix('"').map_or(Some(value), |quoted| quoted.strip_suffix('"'))?;
        if value.contains(['"', '\\']) || (name.eq_ignore_ascii_case("for") && told.replace(value).is_some()) {
            return None;
        }
    }
    address(told?)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    /// The caller behind 10.0.0.1 of `10.0.0.0/8` and `fd00::/8`, which are trusted.
    fn caller(fields: &[(&'static str, &str)]) -> String {
        caller_from("10.0.0.1", fields)
    }

    fn caller_from(peer: &str, fields: &[(&'static str, &str)]) -> String {
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|network| parse_network(network).expect("a network"));
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
        }
        Caller::of(peer.parse().expect("an address"), &headers, &trusted).0.to_string()
    }

    const XFF: &str = "x-forwarded-for";

    #[test]
    fn only_trusted_gateways_are_believed() {
        assert_eq!(caller_from("192.0.2.1", &[(XFF, "198.51.100.1"), ("forwarded", "for=198.51.100.1")]), "192.0.2.1");
        assert_eq!(caller_from("10.0.0.1", &[(XFF, "198.51.100.1")]), "198.51.100.1");
        assert_eq!(caller_from("::ffff:10.0.0.1", &[(XFF, "198.51.100.1")]), "198.51.100.1", "a socket of both kinds");
        assert_eq!(caller_from("::ffff:192.0.2.1", &[(XFF, "198.51.100.1")]), "192.0.2.1");
        assert_eq!(caller(&[]), "10.0.0.1");
    }

    #[test]
    fn the_rightmost_address_that_is_not_trusted_is_the_callers() {
        assert_eq!(caller(&[(XFF, "203.0.113.9, 198.51.100.1, 10.0.0.2,10.9.9.9")]), "198.51.100.1");
        assert_eq!(caller(&[(XFF, "203.0.113.9"), (XFF, "198.51.100.1"), (XFF, "10.0.0.2")]), "198.51.100.1");
        assert_eq!(caller(&[(XFF, "10.0.0.3, 10.0.0.2")]), "10.0.0.3", "all are trusted: the farthest");
        let forwarded = r#"for=203.0.113.9;proto=http, For="[2001:db8::1]:4711";host="a.example", for=10.0.0.2"#;
        assert_eq!(caller(&[("forwarded", forwarded)]), "2001:db8::1");
    }

    #[test]
    fn addresses_have_many_forms() {
        for (text, expected) in [
            ("198.51.100.1:4711", "198.51.100.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:80", "2001:db8::1"),
            ("::ffff:198.51.100.1", "198.51.100.1"),
        ] {
            assert_eq!(caller(&[(XFF, text)]), expected);
            assert_eq!(caller(&[("forwarded", &format!("proto=https; for=\"{text}\""))]), expected);
        }
    }

    #[test]
    fn what_is_malformed_counts_for_nothing() {
        for text in
            ["", ",", "unknown", "_hidden", "198.51.100", "198.51.100.1 x", "[::1", "\u{e9}", "\"198.51.100.1\""]
        {
            assert_eq!(caller(&[(XFF, text)]), "10.0.0.1", "{text}");
            assert_eq!(caller(&[(XFF, &format!("{text}, 198.51.100.1"))]), "198.51.100.1", "{text}");
        }
        assert_eq!(
            caller(&[(XFF, "198.51.100.1, unknown, 10.0.0.2")]),
            "10.0.0.2",
            "known up to the one who knew none"
        );
        for text in [
            "198.51.100.1",
            "for",
            "for=unknown",
            "for=\"198.51.100.1",
            "for=198.51.100.1\"",
            "for=198.51.100.1;;",
            "for=198.51.100.1;for=198.51.100.2",
            "by=198.51.100.1",
            r#"for="198.51.100.1\""#,
        ] {
            assert_eq!(caller(&[("forwarded", text)]), "10.0.0.1", "{text}");
        }
    }

    #[test]
    fn a_client_cannot_make_up_its_address() {
        // An open quote to the left, and commas in the host that a gateway quotes.
        assert_eq!(caller(&[("forwarded", r#"for=", for=198.51.100.1"#)]), "198.51.100.1");
        for host in ["x,for=203.0.113.9", "x,for=203.0.113.9;a=b", "x,for=203.0.113.9;a=\\\""] {
            assert_eq!(caller(&[("forwarded", &format!("for=198.51.100.1;host=\"{host}\""))]), "10.0.0.1", "{host}");
        }
        // The gateway writes one of the two headers, the client the other.
        assert_eq!(caller(&[(XFF, "198.51.100.1"), ("forwarded", "for=203.0.113.9")]), "10.0.0.1");
        assert_eq!(caller(&[(XFF, "198.51.100.1"), ("forwarded", "for=198.51.100.1")]), "198.51.100.1");
    }

    #[test]
    fn networks_and_addresses_are_read() {
        assert_eq!(parse_network("10.0.0.7").expect("an address").to_string(), "10.0.0.7/32");
        assert_eq!(parse_network(" fd00::/8").expect("a network").to_string(), "fd00::/8");
        for text in ["", "10.0.0.0/33", "gateway", "10.0.0"] {
            parse_network(text).expect_err(text);
        }
    }
}
