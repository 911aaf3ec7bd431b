//! The management address of a server: an IPv6 address that comes of its first key and is kept when the key changes.

use std::net::Ipv6Addr;

use sha2::{Digest as _, Sha256};

/// The network that all of them are in.
const NETWORK: u16 = 0xfdcc;

/// The address of the server with this public key: the network, and the beginning of the key's SHA-256.
pub fn address(key: &str) -> Option<Ipv6Addr> {
    let digest = Sha256::digest(decode(key)?);
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&NETWORK.to_be_bytes());
    bytes[2..].copy_from_slice(&digest[..14]);
    Some(bytes.into())
}

/// Whether a text is an address with length of such a network.
pub fn is_one(text: &str) -> bool {
    let address = text.strip_suffix("/128").and_then(|text| text.parse::<Ipv6Addr>().ok());
    address.is_some_and(|address| address.segments()[0] == NETWORK)
}

/// The 32 bytes of a key in base64.
fn decode(key: &str) -> Option<Vec<u8>> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = key.strip_suffix('=').filter(|digits| digits.len() == 43)?;
    let (mut bits, mut count, mut out) = (0_u32, 0, Vec::with_capacity(32));
    for digit in digits.bytes() {
        let value = ALPHABET.iter().position(|known| *known == digit)?;
        bits = bits << 6 | u32::try_from(value).ok()?;
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push(u8::try_from(bits >> count & 0xff).ok()?);
        }
    }
    (out.len() == 32).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_comes_of_the_key_alone() {
        let zeros = format!("{}=", "A".repeat(43));
        assert_eq!(decode(&zeros), Some(vec![0; 32]));
        // SHA-256 of 32 zero bytes: 66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925.
        let address = address(&zeros).expect("an address");
        assert_eq!(address, "fdcc:6668:7aad:f862:bd77:6c8f:c18b:8e9f".parse::<Ipv6Addr>().expect("an address"));
        assert!(is_one(&format!("{address}/128")) && !is_one("fdcd::1/128") && !is_one("10.210.0.1/32"));
        assert_eq!(super::address("short="), None);
    }
}
