//! Addresses as the model has them and as the kernel's tables have them: there, IPv4 is v4-mapped.

use std::net::{IpAddr, SocketAddr};

use abi::Address;
use mesh::service::{Backend, Frontend};

/// An address in the tables.
pub(crate) fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(four) => Address::v4(four.octets()),
        IpAddr::V6(six) => Address(six.octets()),
    }
}

/// An address of the tables.
pub(crate) fn ip(address: Address) -> IpAddr {
    IpAddr::from(address.0).to_canonical()
}

/// An address and a port of the tables.
pub(crate) fn socket(address: Address, port: [u8; 2]) -> SocketAddr {
    SocketAddr::new(ip(address), u16::from_be_bytes(port))
}

/// A key of `FRONTENDS`.
pub(crate) fn frontend_key(frontend: &Frontend) -> abi::Frontend {
    abi::Frontend::new(address(frontend.address), frontend.port, frontend.protocol)
}

/// What a key of `FRONTENDS` stands for.
pub(crate) fn frontend(key: &abi::Frontend) -> Frontend {
    Frontend { address: ip(key.address), port: u16::from_be_bytes(key.port), protocol: key.protocol }
}

/// An element of `BACKENDS`.
pub(crate) fn backend_element(backend: &Backend) -> abi::Backend {
    let port = backend.port().to_be_bytes();
    abi::Backend { address: address(backend.ip()), port, zero: [0; 2], reserved: 0 }
}
