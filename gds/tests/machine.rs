//! What the kernel shows of disks and GPUs, on machines that a test makes.

mod common;

use std::os::unix::fs::MetadataExt;

use common::machine;
use saltern_gds::machine::Machine;

#[test]
fn the_distance_between_a_disk_and_a_gpu_is_found() {
    let dir = common::dir();
    let device = dir.path().metadata().expect("stat").dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    // A partition, whose disk has no node of its own, and whose controller has.
    let controller = "sys/devices/pci0000:80/0000:81:00.0";
    let root = machine(&[
        &format!("{controller}/numa_node=1\n"),
        &format!("{controller}/nvme0/nvme0n1/nvme0n1p1/partition=1"),
        "sys/bus/pci/devices/0000:3b:00.0/numa_node=0\n",
        "sys/bus/pci/devices/0000:5e:00.0/numa_node=-1\n",
        "sys/devices/system/node/online=0-1\n",
        "sys/devices/system/node/node0/distance=10 32\n",
    ]);
    let at = root.path().join("sys/dev/block");
    std::fs::create_dir_all(&at).expect("mkdir");
    let partition = root.path().join(controller).join("nvme0/nvme0n1/nvme0n1p1");
    std::os::unix::fs::symlink(partition, at.join(format!("{major}:{minor}"))).expect("symlink");
    let found = Machine::at(root.path());
    assert_eq!(found.disk_node(dir.path()), Some(1));
    // CUDA writes the domain with eight digits.
    assert_eq!((found.pci_node("0000:3b:00.0"), found.pci_node("00000000:3b:00.0")), (Some(0), Some(0)));
    assert_eq!((found.pci_node("0000:5e:00.0"), found.pci_node("0000:ff:00.0")), (None, None));
    assert_eq!((found.node_distance(0, 1), found.node_distance(0, 0)), (Some(32), Some(10)));
    assert_eq!((found.node_distance(0, 2), found.node_distance(1, 0), found.node_distance(0, -1)), (None, None, None));
    let nothing = machine(&[]);
    assert_eq!(Machine::at(nothing.path()).disk_node(dir.path()), None);
}

#[test]
fn distances_are_those_of_the_nodes_that_are_online() {
    let root = machine(&[
        "sys/devices/system/node/online=0,2-3,7\n",
        "sys/devices/system/node/node0/distance=10 20 21 70\n",
        "sys/devices/system/node/node2/distance=20 10 12 72\n",
    ]);
    let found = Machine::at(root.path());
    let distances = |from| [0, 1, 2, 3, 7, 8].map(|to| found.node_distance(from, to));
    assert_eq!(distances(0), [Some(10), None, Some(20), Some(21), Some(70), None]);
    assert_eq!(distances(2), [Some(20), None, Some(10), Some(12), Some(72), None]);
    assert_eq!(found.node_distance(1, 0), None);
    // Without the list, or with one that is not understood, a column could be any node's.
    for online in ["sys/other", "sys/devices/system/node/online=0,x\n"] {
        let root = machine(&[online, "sys/devices/system/node/node0/distance=10 20\n"]);
        assert_eq!(Machine::at(root.path()).node_distance(0, 0), None, "{online}");
    }
}
