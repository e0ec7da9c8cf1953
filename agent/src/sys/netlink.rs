//! The two things that a pod's namespace needs of its routing: a rule on a mark, and a local route for
//! everything. Spoken over rtnetlink, on a socket made in the namespace by the caller.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Rt};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::{Named, SysError};

/// `ip [-6] rule add pref PREF fwmark MARK/MASK lookup TABLE`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkRule {
    pub family: Family,
    pub priority: u32,
    pub mark: u32,
    pub mask: u32,
    pub table: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn address_family(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 => AddressFamily::Inet6,
        }
    }
}

/// `ip [-6] route replace local PREFIX dev lo [src SOURCE] table TABLE`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalRoute {
    pub to: IpNet,
    pub source: Option<IpAddr>,
    pub table: u32,
}

/// A conversation with rtnetlink in the namespace of the thread that opens it.
pub struct Route {
    socket: Socket,
    sequence: u32,
}

impl Route {
    pub fn open() -> Result<Self, SysError> {
        let mut socket = Socket::new(NETLINK_ROUTE).named("socket", || "NETLINK_ROUTE".into())?;
        socket.bind_auto().named("bind", || "NETLINK_ROUTE".into())?;
        socket.connect(&SocketAddr::new(0, 0)).named("connect", || "NETLINK_ROUTE".into())?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Adds the rule unless the very same one is there.
    pub fn ensure_rule(&mut self, rule: &MarkRule) -> Result<(), SysError> {
        if self.has_rule(rule)? {
            return Ok(());
        }
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        match self.command(Rt::NewRule(rule.message()), flags) {
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            other => other.named("RTM_NEWRULE", || format!("{rule:?}")),
        }
    }

    /// Whether exactly this rule is there.
    pub fn has_rule(&mut self, rule: &MarkRule) -> Result<bool, SysError> {
        let mut ask = RuleMessage::default();
        ask.header.family = rule.family.address_family();
        let found = self.dump(Rt::GetRule(ask)).named("RTM_GETRULE", String::new)?;
        Ok(found.iter().any(|m| matches!(m, Rt::NewRule(r) if rule.is(r))))
    }

    /// Removes the rule; none there is fine.
    pub fn remove_rule(&mut self, rule: &MarkRule) -> Result<(), SysError> {
        match self.command(Rt::DelRule(rule.message()), 0) {
            Err(e) if is_absent(&e) => Ok(()),
            other => other.named("RTM_DELRULE", || format!("{rule:?}")),
        }
    }

    pub fn ensure_route(&mut self, route: &LocalRoute) -> Result<(), SysError> {
        self.command(Rt::NewRoute(route.message()), NLM_F_CREATE | NLM_F_REPLACE)
            .named("RTM_NEWROUTE", || format!("{route:?}"))
    }

    /// Whether a local route to this prefix is in its table, whatever its source.
    pub fn has_route(&mut self, route: &LocalRoute) -> Result<bool, SysError> {
        let mut ask = RouteMessage::default();
        ask.header.address_family = Family::of(route.to.addr()).address_family();
        let found = self.dump(Rt::GetRoute(ask)).named("RTM_GETROUTE", String::new)?;
        Ok(found.iter().any(|m| matches!(m, Rt::NewRoute(r) if route.is(r))))
    }

    /// Removes the route; none there is fine.
    pub fn remove_route(&mut self, route: &LocalRoute) -> Result<(), SysError> {
        match self.command(Rt::DelRoute(route.message()), 0) {
            Err(e) if is_absent(&e) => Ok(()),
            other => other.named("RTM_DELROUTE", || format!("{route:?}")),
        }
    }

    fn command(&mut self, message: Rt, flags: u16) -> io::Result<()> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        self.answers(|_| {})
    }

    fn dump(&mut self, message: Rt) -> io::Result<Vec<Rt>> {
        self.send(message, NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut found = Vec::new();
        self.answers(|m| found.push(m))?;
        Ok(found)
    }

    fn send(&mut self, message: Rt, flags: u16) -> io::Result<()> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(|_| ())
    }

    /// Reads until the acknowledgement, the error, or the end of the dump.
    fn answers(&mut self, mut each: impl FnMut(Rt)) -> io::Result<()> {
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut rest = &bytes[..];
            while rest.len() >= 16 {
                let message = NetlinkMessage::<Rt>::deserialize(rest)
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
                let len = (message.header.length as usize).max(16).next_multiple_of(4);
                rest = rest.get(len..).unwrap_or_default();
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(e) if e.code.is_none() => return Ok(()),
                    NetlinkPayload::Error(e) => return Err(e.to_io()),
                    NetlinkPayload::InnerMessage(m) => each(m),
                    _ => {}
                }
            }
        }
    }
}

impl MarkRule {
    fn message(&self) -> RuleMessage {
        let mut m = RuleMessage::default();
        m.header.family = self.family.address_family();
        m.header.action = RuleAction::ToTable;
        m.header.table = u8::try_from(self.table).unwrap_or(0);
        m.attributes = vec![
            RuleAttribute::Priority(self.priority),
            RuleAttribute::FwMark(self.mark),
            RuleAttribute::FwMask(self.mask),
            RuleAttribute::Table(self.table),
            RuleAttribute::Protocol(RouteProtocol::Static),
        ];
        m
    }

    fn is(&self, m: &RuleMessage) -> bool {
        let has = |a: RuleAttribute| m.attributes.contains(&a);
        m.header.family == self.family.address_family()
            && m.header.action == RuleAction::ToTable
            && has(RuleAttribute::Priority(self.priority))
            && has(RuleAttribute::FwMark(self.mark))
            && has(RuleAttribute::FwMask(self.mask))
            && has(RuleAttribute::Table(self.table))
    }
}

impl LocalRoute {
    fn message(&self) -> RouteMessage {
        let family = Family::of(self.to.addr());
        let mut m = RouteMessage::default();
        m.header = RouteHeader {
            address_family: family.address_family(),
            destination_prefix_length: self.to.prefix_len(),
            table: u8::try_from(self.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC),
            protocol: RouteProtocol::Static,
            scope: RouteScope::Host,
            kind: RouteType::Local,
            ..RouteHeader::default()
        };
        // `lo` is interface 1 in every network namespace (LOOPBACK_IFINDEX).
        m.attributes = vec![RouteAttribute::Table(self.table), RouteAttribute::Oif(1)];
        if self.to.prefix_len() > 0 {
            m.attributes.push(RouteAttribute::Destination(address(self.to.addr())));
        }
        if let Some(source) = self.source {
            m.attributes.push(RouteAttribute::PrefSource(address(source)));
        }
        m
    }
}

impl LocalRoute {
    fn is(&self, m: &RouteMessage) -> bool {
        let has = |a: RouteAttribute| m.attributes.contains(&a);
        m.header.kind == RouteType::Local
            && m.header.destination_prefix_length == self.to.prefix_len()
            && has(RouteAttribute::Table(self.table))
            && (self.to.prefix_len() == 0 || has(RouteAttribute::Destination(address(self.to.addr()))))
    }
}

fn address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

fn is_absent(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::ENODEV))
}
