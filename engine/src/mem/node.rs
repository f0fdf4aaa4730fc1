//! Memory near a device: the NUMA node that a thread gets its pages from, while it makes pools for that device. A copy to a GPU from
//! the other socket's memory goes through the link between the two.

use std::ffi::c_ulong;
use std::marker::PhantomData;

use nix::errno::Errno;

/// As many nodes as a kernel can be built for.
const NODES_MAX: usize = 1024;

/// The kernel takes one bit less than it is told.
const BITS: usize = NODES_MAX + 1;

const WORD_BITS: usize = c_ulong::BITS as usize;

type Nodes = [c_ulong; NODES_MAX / WORD_BITS];

/// This thread's pages come from one node, as long as it has any, until this is dropped.
pub(crate) struct NearNode {
    before: (libc::c_int, Nodes),
    /// A policy is a thread's.
    _stays: PhantomData<*const ()>,
}

impl NearNode {
    /// From now on.
    ///
    /// # Errors
    /// No such node; a kernel without NUMA; a container that forbids it.
    pub(crate) fn enter(node: u32) -> Result<Self, Errno> {
        let node = node as usize;
        if node >= NODES_MAX {
            return Err(Errno::EINVAL);
        }
        let before = policy()?;
        let mut nodes: Nodes = [0; NODES_MAX / WORD_BITS];
        nodes[node / WORD_BITS] = 1 << (node % WORD_BITS);
        set_policy(libc::MPOL_PREFERRED, &nodes)?;
        Ok(Self { before, _stays: PhantomData })
    }
}

impl Drop for NearNode {
    fn drop(&mut self) {
        let (mode, nodes) = &self.before;
        if let Err(errno) = set_policy(*mode, nodes) {
            tracing::warn!(%errno, "a thread's memory policy could not be restored");
        }
    }
}

/// The thread's mode, and its nodes.
fn policy() -> Result<(libc::c_int, Nodes), Errno> {
    let (mut mode, mut nodes): (libc::c_int, Nodes) = (0, [0; NODES_MAX / WORD_BITS]);
    // SAFETY: writes one integer, and as many bits as it is told, for which there is room.
    let code =
        unsafe { libc::syscall(libc::SYS_get_mempolicy, &raw mut mode, nodes.as_mut_ptr(), BITS, 0_usize, 0_usize) };
    Errno::result(code).map(|_| (mode, nodes))
}

fn set_policy(mode: libc::c_int, nodes: &Nodes) -> Result<(), Errno> {
    // The default mode takes no nodes.
    let (nodes, bits) =
        if nodes.iter().all(|word| *word == 0) { (std::ptr::null(), 0) } else { (nodes.as_ptr(), BITS) };
    // SAFETY: reads as many bits as it is told, which are there.
    let code = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, nodes, bits) };
    Errno::result(code).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threads_policy_is_as_before_afterwards() {
        let before = match policy() {
            Ok(before) => before,
            Err(errno) => return eprintln!("skipped: get_mempolicy: {errno}"),
        };
        match NearNode::enter(0) {
            Ok(near) => {
                let (mode, nodes) = policy().unwrap();
                assert_eq!((mode, nodes[0]), (libc::MPOL_PREFERRED, 1));
                drop(near);
            }
            Err(errno) => eprintln!("skipped: set_mempolicy: {errno}"),
        }
        assert_eq!(policy().unwrap(), before);
        for node in [1000, 5000] {
            assert!(NearNode::enter(node).is_err(), "no machine has node {node}");
        }
        assert_eq!(policy().unwrap(), before);
    }
}
