//! Addresses as the kernel's contexts give them: four words in network order.

use underpass_common::Addr16;

/// Four 32-bit words, each as it lies in memory (network byte order). IPv4 is v4-mapped.
#[derive(Clone, Copy)]
pub struct Words(pub [u32; 4]);

/// The family that packets will have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

const MAPPED: u32 = 0xffff_u32.to_be();

impl Words {
    /// From the one word of an IPv4 address.
    #[inline(always)]
    pub fn v4(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

    #[inline(always)]
    pub fn addr(self) -> Addr16 {
        // SAFETY: both are sixteen plain bytes.
        Addr16(unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(self.0) })
    }

    #[inline(always)]
    pub fn from_addr(addr: Addr16) -> Self {
        // SAFETY: both are sixteen plain bytes.
        Self(unsafe { core::mem::transmute::<[u8; 16], [u32; 4]>(addr.0) })
    }

    #[inline(always)]
    pub fn family(self) -> Family {
        if self.0[0] == 0 && self.0[1] == 0 && self.0[2] == MAPPED { Family::V4 } else { Family::V6 }
    }

    /// 127.0.0.0/8 or ::1, and the unspecified address, which connect() takes for loopback.
    #[inline(always)]
    pub fn is_loopback(self) -> bool {
        if self.0[0] != 0 || self.0[1] != 0 {
            return false;
        }
        let last = u32::from_be(self.0[3]);
        match self.0[2] {
            0 => last <= 1,
            MAPPED => last == 0 || last >> 24 == 127,
            _ => false,
        }
    }
}
