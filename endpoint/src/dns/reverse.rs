//! Addresses as names of the reverse zones (RFC 1035, 3.5; RFC 3596, 2.5).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::zone::Owner;

/// The address whose reverse name this is.
pub(super) fn address(name: &Owner) -> Option<IpAddr> {
    let labels: Vec<_> = name.iter().map(|label| label.as_slice().to_ascii_lowercase()).collect();
    let labels: Vec<_> = labels.iter().map(Vec::as_slice).collect();
    match labels.as_slice() {
        [octets @ .., b"in-addr", b"arpa", b""] if octets.len() == 4 => {
            let octets: Option<Vec<u8>> = octets.iter().rev().map(|label| number(label, 10)).collect();
            let octets: [u8; 4] = octets?.try_into().ok()?;
            Some(Ipv4Addr::from(octets).into())
        }
        [nibbles @ .., b"ip6", b"arpa", b""] if nibbles.len() == 32 => {
            let mut bits = 0u128;
            for label in nibbles.iter().rev() {
                let nibble = number(label, 16).filter(|_| label.len() == 1)?;
                bits = bits << 4 | u128::from(nibble);
            }
            Some(Ipv6Addr::from_bits(bits).into())
        }
        _ => None,
    }
}

/// One spelling only: no sign, no leading zeros.
fn number(label: &[u8], radix: u32) -> Option<u8> {
    let plain =
        label.iter().all(u8::is_ascii_alphanumeric) && (label.len() == 1 || label.first() != Some(&b'0'));
    let text = std::str::from_utf8(label).ok().filter(|_| plain)?;
    u8::from_str_radix(text, radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_one_reverse_name() {
        for text in ["10.96.0.7", "0.0.0.0", "255.255.255.255", "fd00:217::1f", "::"] {
            let address: IpAddr = text.parse().unwrap();
            let name = Owner::reverse_from_addr(address).unwrap();
            assert_eq!(super::address(&name), Some(address), "{name}");
            let upper = Owner::vec_from_str(&name.to_string().to_uppercase()).unwrap();
            assert_eq!(super::address(&upper), Some(address), "{upper}");
        }
    }

    #[test]
    fn other_names_below_arpa_are_no_addresses() {
        let nibbles = "0.".repeat(31);
        let names = [
            "in-addr.arpa",
            "0.96.10.in-addr.arpa",
            "1.7.0.96.10.in-addr.arpa",
            "07.0.96.10.in-addr.arpa",
            "256.0.96.10.in-addr.arpa",
            "+7.0.96.10.in-addr.arpa",
            "7.0.96.10.in-addr.example",
            &format!("{nibbles}ip6.arpa"),
            &format!("{nibbles}g.ip6.arpa"),
            &format!("{nibbles}10.ip6.arpa"),
        ];
        for name in names {
            assert_eq!(address(&Owner::vec_from_str(name).unwrap()), None, "{name}");
        }
    }
}
