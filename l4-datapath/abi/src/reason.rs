//! Why a packet was dropped, and the `DROPS` map that counts it.

macro_rules! reasons {
    ($( $(#[$doc:meta])* $name:ident = $number:literal, $text:literal; )+) => {
        /// Why a packet was dropped: the one enum for kernel, events, metrics and command line.
        ///
        /// Numbers 130–203 are Hubble's `flow.DropReason` where the meaning is the same; ours start at 220.
        #[repr(u8)]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum DropReason { $( $(#[$doc])* $name = $number, )+ }

        impl DropReason {
            /// Every reason, for documentation, completion and tests.
            pub const ALL: &'static [Self] = &[ $( Self::$name, )+ ];

            /// The reason as people read it; the same words as Hubble's where it has the reason.
            pub const fn text(self) -> &'static str {
                match self { $( Self::$name => $text, )+ }
            }

            /// The reason with this number.
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $( $number => Some(Self::$name), )+ _ => None }
            }
        }
    };
}

reasons! {
    /// Source MAC is not the workload's own.
    InvalidSourceMac = 130, "Invalid source mac";
    /// Source address is not the workload's own, or a packet from outside carries an address of this node.
    InvalidSourceIp = 132, "Invalid source ip";
    /// No rule allows it.
    PolicyDenied = 133, "Policy denied";
    /// Headers truncated, lengths that contradict each other, a version that is not the EtherType's.
    InvalidPacket = 134, "Invalid packet";
    /// Neither IPv4, IPv6 nor ARP.
    UnsupportedL3 = 139, "Unsupported L3 protocol";
    /// An IP protocol that cannot be judged (tunnels, unknown).
    UnknownL4 = 142, "Unknown L4 protocol";
    /// The connection table refused an insertion.
    ConnectionMapFull = 155, "CT: Map insertion failed";
    /// IPv6 extension header.
    Ipv6Extension = 156, "Invalid IPv6 extension header";
    /// A fragment that cannot be judged: the first one does not hold the transport header, or pieces overlap.
    Fragment = 157, "IP fragmentation not supported";
    /// A service without a backend, or a port that the service does not have.
    NoBackend = 158, "Service backend not found";
    /// Every port that could stand for the workload's is taken, or the device has no address to masquerade by.
    NoMapping = 167, "No mapping for NAT masquerade";
    /// A protocol that has nothing to tell one workload's answers from another's.
    UnsupportedMasquerade = 168, "Unsupported protocol for NAT masquerade";
    /// A later fragment whose first one has not passed.
    FirstFragmentMissing = 175, "First logical datagram fragment not found";
    /// A deny rule matched.
    PolicyDeny = 181, "Policy denied by denylist";
    /// Policy asks for a proof that is not there, and the packet cannot wait for it.
    AuthenticationRequired = 189, "Authentication required";
    /// IPv4 options.
    Ipv4Options = 220, "IPv4 options";
    /// TCP flags that no first packet and no packet of this connection may carry.
    InvalidTcpFlags = 221, "Invalid TCP flags";
    /// Not a first packet, and no connection it belongs to.
    NoConnection = 222, "No connection";
    /// ICMP error about a connection that does not exist or is not the receiver's.
    UnrelatedIcmp = 223, "ICMP error without connection";
    /// The endpoint already has as many connections as it may have.
    ConnectionQuota = 224, "Connection quota exceeded";
    /// Multicast or broadcast.
    Multicast = 225, "Multicast and broadcast not supported";
    /// An address that may never be source or destination here: loopback, unspecified, link-local, v4-mapped, class E.
    InvalidAddress = 226, "Invalid address";
    /// Hop limit reached; answered with ICMP time exceeded.
    TtlExceeded = 227, "TTL exceeded";
    /// Larger than the way allows; answered with Frag Needed or Packet Too Big.
    TooBig = 228, "Packet too big";
    /// Neighbour discovery or ARP that a workload may not send.
    NeighbourSpoof = 229, "Forbidden neighbour message";
    /// No identity is known for the peer: no entry means no.
    NoIdentity = 230, "Identity unknown";
    /// An address of the pool that no endpoint has.
    NoEndpoint = 231, "No such endpoint";
    /// A service's backend answers this workload on these ports already, without the service.
    TranslationConflict = 233, "Translation in use";
    /// The table of translations refused an insertion.
    TranslationMapFull = 234, "Translation map insertion failed";
    /// The proof that policy asks for was tried and refused a moment ago.
    AuthenticationRefused = 235, "Authentication refused";
    /// The proof that the connection depends on has been withdrawn, has expired, or nobody vouches for it any more.
    AuthenticationEnded = 236, "Authentication ended";
    /// Policy asks for a proof of somebody who has no SPIFFE ID: the world, a host, a masqueraded address.
    NoPrincipal = 237, "Peer has no SPIFFE ID";
    /// Too many packets wait for a proof already.
    HoldFull = 238, "Too many packets wait for authentication";
    /// A frame on the hold device that is none of those that wait.
    HoldForged = 239, "Unknown held packet";
    /// Another node's address of which nothing is known yet, and the packet cannot wait for that.
    PendingAddress = 240, "Address not known yet";
    /// Policy asks for the L7 proxy, and the connection was opened past it: it is older than that policy.
    NotProxied = 241, "Connection older than its L7 policy";
    /// Policy asks for the L7 proxy, and none listens.
    NoProxy = 242, "L7 proxy not ready";
    /// A packet in a workload's name that neither the workload nor the L7 proxy has sent, or one of the proxy's for which
    /// no workload has asked.
    ProxyForged = 243, "Not sent for a proxied connection";
    /// The L7 proxy has a connection of its own to the same end in this workload's name on these ports.
    ProxyPorts = 244, "Ports in use by the L7 proxy";
    /// Policy asks for the L7 proxy, which cannot call the node itself in a workload's name.
    ProxyToHost = 245, "L7 policy for the node itself";
    /// A map the program cannot do without has no entry: the node is not configured yet.
    NotReady = 232, "Datapath not ready";
}

/// Direction relative to the endpoint that judged.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Direction {
    /// Towards the endpoint.
    Ingress = 0,
    /// From the endpoint.
    Egress = 1,
}

/// Key of `DROPS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DropKey {
    /// Host-side veth of the endpoint that judged: it names the culprit even when the packet's addresses lie.
    pub ifindex: u32,
    /// [`DropReason`] as u8.
    pub reason: u8,
    /// [`Direction`] as u8.
    pub direction: u8,
    /// Zero.
    pub zero: [u8; 2],
}

/// Value of `DROPS`, one per CPU. Writers: the programs.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DropCount {
    /// Packets dropped.
    pub packets: u64,
    /// Their bytes, Ethernet header included.
    pub bytes: u64,
}
const _: () = assert!(size_of::<DropKey>() == 8 && size_of::<DropCount>() == 16);
