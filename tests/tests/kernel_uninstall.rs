//! What uninstall removes (all of it), and what two agents on one kernel have to do with each other
//! (nothing).
#![allow(clippy::unwrap_used)] // in tests' helpers, as in tests

mod kernel;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Barrier};

use anyhow::{Result, ensure};
use aya::maps::loaded_maps;
use aya::programs::{loaded_links, loaded_programs};
use kernel::loaded::{link_ids, map_ids, program_ids};
use kernel::{PORT, Place, StandIn, answers, at, config, fails_closed, load};
use underpass::bpf::{self, CaptureMode, Destination, Features, Kernel};
use underpass_tests::stories::{self, World};
use underpass_tests::wait;

fn main() -> ExitCode {
    stories::run(&[
        ("uninstall_leaves_nothing", uninstall),
        ("uninstalling_nothing_is_fine", uninstall_nothing),
        ("a_bpffs_is_mounted_where_there_is_none", mounts_bpffs),
        ("agents_that_start_at_once_mount_one_bpffs", mount_at_once),
        ("two_instances_do_not_meet", two_instances),
    ])
}

impl World for Place {
    fn build() -> Result<Self> {
        Place::new()
    }
}

fn uninstall(place: &mut Place) -> Result<()> {
    let config = config(&place.topology, "b");
    let programs = Arc::new(load(&config, Features::detect())?);
    programs.set_ranges(&kernel::ranges())?;
    let marked = StandIn::start(&programs, place.pod("client"), CaptureMode::Mark)?;
    let looped = StandIn::start(&programs, place.pod("beside"), CaptureMode::Loopback)?;
    let _real = place.real("server", PORT)?;
    for pod in ["client", "beside"] {
        ensure!(answers(place, pod, false)? == "outbound");
    }
    let (maps, ids) = (map_ids(&config.pin_root, "b")?, program_ids(&config.pin_root, "b")?);
    let links = link_ids(&ids)?;
    ensure!(maps.len() >= 13 && links.len() >= 10, "{maps:?} {links:?}");
    let mut enrolled = vec![marked.cookie(), looped.cookie()];
    enrolled.sort();

    let mut removed = bpf::uninstall(&config.pin_root, "b")?;
    removed.pods.sort();
    ensure!(removed.pods == enrolled, "{removed:?}");
    ensure!(removed.links.len() == 10 && removed.maps.len() == 13, "{removed}");
    // At once, although an agent still has descriptors of everything.
    for pod in ["client", "beside"] {
        ensure!(answers(place, pod, false)? == "server");
    }
    ensure!(!fs::exists(config.pin_root.join("b"))?);
    wait::until_true(wait::PATIENCE, "every link is gone", || {
        loaded_links().flatten().all(|link| !links.contains(&link.id()))
    })?;
    // And when the agent ends, the kernel frees the rest.
    marked.abandon();
    looped.abandon();
    drop(programs);
    wait::until_true(wait::PATIENCE, "every program and map is gone", || {
        let live: BTreeSet<u32> = loaded_programs().flatten().map(|p| p.id()).collect();
        let live_maps: BTreeSet<u32> = loaded_maps().flatten().map(|m| m.id()).collect();
        ids.is_disjoint(&live) && maps.is_disjoint(&live_maps)
    })?;
    kernel::unplumb(place.pod("client"));
    kernel::unplumb(place.pod("beside"));
    Ok(())
}

fn uninstall_nothing(place: &mut Place) -> Result<()> {
    let removed = bpf::uninstall(&place.config.pin_root, "never-was")?;
    ensure!(removed == bpf::Removed::default(), "{removed:?}");
    ensure!(removed.to_string().contains("nothing"));
    ensure!(bpf::uninstall(Path::new("/sys/fs/bpf/underpass-never-was"), "a")? == bpf::Removed::default());
    Ok(())
}

/// In a mount namespace of its own, where nothing is mounted at /sys/fs/bpf.
fn mounts_bpffs(place: &mut Place) -> Result<()> {
    let config = config(&place.topology, "b");
    without_bpffs(|| {
        let report = bpf::Report::probe(&config);
        ensure!(report.is_usable() && report.to_string().contains("will mount it"), "{report}");
        drop(load(&config, Features::detect())?);
        ensure!(fs::exists(config.pin_root.join("b/v1/links/connect4"))?);
        bpf::uninstall(&config.pin_root, "b")?;
        ensure!(!fs::exists(&config.pin_root)?, "the folder is still there");
        Ok(())
    })?;
    ensure!(fs::exists(place.config.pin_root.join("a/v1/links/connect4"))?, "the real one is hidden");
    Ok(())
}

fn mount_at_once(place: &mut Place) -> Result<()> {
    let configs = ["b", "c", "d", "e"].map(|instance| config(&place.topology, instance));
    without_bpffs(|| {
        let ready = Barrier::new(configs.len());
        let start = |config: &bpf::Config| {
            ready.wait();
            load(config, Features::detect()).map(drop)
        };
        std::thread::scope(|scope| {
            let all: Vec<_> = configs.iter().map(|config| scope.spawn(|| start(config))).collect();
            all.into_iter().try_for_each(|one| one.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
        })?;
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
        let mounted = mounts.lines().filter(|line| line.contains(" - bpf ")).count();
        ensure!(mounted == 1, "{mounted} are mounted: {mounts}");
        for config in &configs {
            bpf::uninstall(&config.pin_root, &config.instance)?;
        }
        Ok(())
    })
}

/// Does it where no bpffs is mounted, out of sight of everybody else.
fn without_bpffs(work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    use nix::sched::{CloneFlags, unshare};
    std::thread::scope(|scope| {
        let apart = scope.spawn(|| -> Result<()> {
            unshare(CloneFlags::CLONE_NEWNS)?;
            let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
            while umount2("/sys/fs/bpf", MntFlags::MNT_DETACH).is_ok() {}
            ensure!(!fs::exists("/sys/fs/bpf/maps.debug")?, "it is still mounted");
            work()
        });
        apart.join().unwrap_or_else(|p| std::panic::resume_unwind(p))
    })
}

fn two_instances(place: &mut Place) -> Result<()> {
    let other = config(&place.topology, "b");
    let theirs = Arc::new(load(&other, Features::detect())?);
    theirs.set_ranges(&kernel::ranges())?;
    let _real = place.real("server", PORT)?;
    let a = place.enrol("client", CaptureMode::Mark)?;
    let b = StandIn::start(&theirs, place.pod("beside"), CaptureMode::Mark)?;
    for v6 in [false, true] {
        ensure!(answers(place, "client", v6)? == "outbound" && answers(place, "beside", v6)? == "outbound");
        ensure!(a.take_accepted().len() == 1 && b.take_accepted().len() == 1);
    }
    ensure!(place.programs.enrolled()? == [a.cookie()] && theirs.enrolled()? == [b.cookie()]);
    // What one learns is nothing to the other; nor is its end.
    theirs.teach(place.pod("server").ip(false), Destination::Leave)?;
    ensure!(answers(place, "client", false)? == "outbound" && answers(place, "beside", false)? == "server");
    theirs.set_destinations(&Default::default())?;
    a.close();
    fails_closed(place)?;
    ensure!(answers(place, "beside", false)? == "outbound");
    a.open()?;
    let guarded = |pod: &str| {
        let addr = at("127.0.0.1".parse().unwrap(), 15_003);
        underpass_tests::hostile::bind(&place.pod(pod).ns, addr, false).is_err()
    };
    ensure!(!guarded("client") && !guarded("beside"), "a port of nobody's is guarded");
    bpf::uninstall(&other.pin_root, "b")?;
    ensure!(answers(place, "client", true)? == "outbound" && answers(place, "beside", true)? == "server");
    b.abandon();
    kernel::unplumb(place.pod("beside"));
    Ok(())
}
