//! Socket storage and the listeners' map, for the kinds of socket pointers that our programs meet.
//! (aya's own types serve one kind of program each, and know no flags for storage.)

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_map_type, bpf_sock};
use aya_ebpf::helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get};
use aya_ebpf::helpers::{bpf_map_lookup_elem, bpf_sk_release};

/// A value that lives and dies with a socket. The field order is the loader's contract (BTF).
#[repr(C)]
pub struct SocketStorage<T, const FLAGS: usize> {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: placeholders for the loader; nothing reads them.
unsafe impl<T, const FLAGS: usize> Sync for SocketStorage<T, FLAGS> {}

impl<T, const FLAGS: usize> SocketStorage<T, FLAGS> {
    pub const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    /// The socket's value. `socket` may be anything the verifier takes for a socket: `bpf_sock`, or
    /// the context of a `cgroup/post_bind` program.
    ///
    /// # Safety
    /// `socket` must be such a pointer, and not null.
    #[inline(always)]
    pub unsafe fn get<S>(&self, socket: *mut S) -> Option<&'static mut T> {
        // SAFETY: the map exists once the program is loaded; the verifier checks the rest. The value
        // is freed after the grace period in which the program runs.
        unsafe { bpf_sk_storage_get(self.map(), socket.cast(), ptr::null_mut(), 0).cast::<T>().as_mut() }
    }

    /// The socket's value, made from `initial` when it has none. `None` is lack of memory.
    ///
    /// # Safety
    /// As [`Self::get`].
    #[inline(always)]
    pub unsafe fn get_or_insert<S>(&self, socket: *mut S, initial: &mut T) -> Option<&'static mut T> {
        let initial = ptr::from_mut(initial).cast();
        // SAFETY: as in `get`; the kernel copies `initial`.
        unsafe {
            bpf_sk_storage_get(self.map(), socket.cast(), initial, BPF_SK_STORAGE_GET_F_CREATE.into())
                .cast::<T>()
                .as_mut()
        }
    }

    /// # Safety
    /// As [`Self::get`].
    #[inline(always)]
    pub unsafe fn remove<S>(&self, socket: *mut S) {
        // SAFETY: as in `get`. Its only failure is that there was nothing to remove.
        unsafe { bpf_sk_storage_delete(self.map(), socket.cast()) };
    }

    #[inline(always)]
    fn map(&self) -> *mut c_void {
        ptr::from_ref(self).cast_mut().cast()
    }
}

/// The agent's listening sockets (BPF_MAP_TYPE_SOCKHASH): a closed one leaves it by itself.
#[repr(C)]
pub struct ListenerMap<K, const ENTRIES: usize> {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_SOCKHASH as usize],
    key: *const K,
    value: *const u32,
    max_entries: *const [i32; ENTRIES],
    map_flags: *const [i32; 0],
}

// SAFETY: as for SocketStorage.
unsafe impl<K, const ENTRIES: usize> Sync for ListenerMap<K, ENTRIES> {}

impl<K, const ENTRIES: usize> ListenerMap<K, ENTRIES> {
    pub const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    /// Calls `with` with the socket, if there is one, and returns what it returns.
    #[inline(always)]
    pub fn with<R>(&self, key: &K, with: impl FnOnce(*mut bpf_sock) -> R) -> Option<R> {
        // SAFETY: the map exists once the program is loaded. A lookup takes a reference to the
        // socket, which is given back below on every path.
        unsafe {
            let socket =
                bpf_map_lookup_elem(ptr::from_ref(self).cast_mut().cast(), ptr::from_ref(key).cast());
            if socket.is_null() {
                return None;
            }
            let result = with(socket.cast());
            bpf_sk_release(socket);
            Some(result)
        }
    }
}
