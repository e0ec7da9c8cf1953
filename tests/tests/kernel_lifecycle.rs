//! Programs, links and pins: what an agent leaves behind, and what the next one makes of it.
#![allow(clippy::unwrap_used)] // in tests' helpers, as in tests

mod kernel;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kernel::loaded::{link_ids, program_ids};
use kernel::sockets::{connect_at_once, tcp};
use kernel::{PORT, Place, StandIn, answerer, answers, at, config, fails_closed, load, who};
use underpass::bpf::{self, BpfError, CaptureMode, Destination, Features, Kernel, Programs};
use underpass::model::{InboundAction, InboundPlan};
use underpass_tests::stories::{self, World};
use underpass_tests::wait;
use underpass_tests::work::talk;

fn main() -> ExitCode {
    stories::run(&[
        ("while_the_agent_is_away_pods_fail_closed", away),
        ("the_next_agent_adopts_what_it_finds", adoption),
        ("no_connection_slips_through_a_restart", restarts_under_load),
        ("ended_namespaces_are_forgotten", ended),
        ("another_cgroup_is_followed", other_cgroup),
        ("a_detached_link_is_made_again", detached),
        ("a_pod_that_cannot_be_pinned_is_closed", unpinned),
        ("another_instances_pod_is_not_touched", of_another),
        ("foreign_pins_are_refused", foreign_pins),
        ("messages_of_the_programs_reach_the_log", messages),
        ("older_kernels_get_their_fallbacks", fallbacks),
        ("this_kernel_passes_the_probe", probe),
    ])
}

impl World for Place {
    fn build() -> Result<Self> {
        Place::new()
    }
}

/// An agent that is gone: its process's descriptors are closed, nothing is undone.
fn leave(place: &mut Place, stand_in: StandIn) {
    stand_in.abandon();
    let idle = Features::detect();
    // The place needs some programs; these are of another instance until the story loads its own.
    let elsewhere = config(&place.topology, "b");
    place.programs = Arc::new(load(&elsewhere, idle).unwrap());
}

fn adopt(place: &mut Place) -> Result<()> {
    place.programs = Arc::new(load(&place.config, Features::detect())?);
    bpf::uninstall(&place.config.pin_root, "b")?;
    Ok(())
}

fn away(place: &mut Place) -> Result<()> {
    let stand_in = place.enrol("client", CaptureMode::Mark)?;
    stand_in.inbound(InboundPlan::all(InboundAction::Steer))?;
    let _real = place.real("server", PORT)?;
    let _inside = place.real("client", PORT)?;
    let cookie = stand_in.cookie();
    leave(place, stand_in);
    fails_closed(place)?;
    for v6 in [false, true] {
        let to = at(place.pod("client").ip(v6), PORT);
        let inbound = underpass_tests::work::talk::dial_within(
            &place.pod("beside").ns,
            to,
            std::time::Duration::from_millis(500),
        );
        ensure!(inbound.is_err(), "plaintext came in without an agent");
    }
    adopt(place)?;
    fails_closed(place)?;
    place.programs.unenrol(cookie)?;
    ensure!(answers(place, "client", false)? == "server");
    Ok(())
}

fn adoption(place: &mut Place) -> Result<()> {
    let stand_in = place.enrol("client", CaptureMode::Mark)?;
    stand_in.inbound(InboundPlan::all(InboundAction::Steer))?;
    let _real = place.real("server", PORT)?;
    let before = program_ids(&place.config.pin_root, "a")?;
    let links = link_ids(&before)?;
    place.programs.teach(place.pod("beside").ip(false), Destination::Leave)?;
    let cookie = stand_in.cookie();
    leave(place, stand_in);
    adopt(place)?;
    ensure!(place.programs.enrolled()? == [cookie]);
    let stand_in = StandIn::adopt(&place.programs, place.pod("client"))?;
    // New programs, on the old maps: ranges, destinations and plans are still there.
    let after = program_ids(&place.config.pin_root, "a")?;
    ensure!(before.is_disjoint(&after), "old programs are still attached: {before:?} {after:?}");
    // In the same links: with new ones there would be a moment without either program.
    ensure!(!links.is_empty() && links == link_ids(&after)?, "links were made anew: {links:?}");
    let folder = fs::metadata(place.config.pin_root.join("a/v1/maps"))?;
    ensure!(folder.permissions().mode() & 0o077 == 0, "others may open the maps: {folder:?}");
    for v6 in [false, true] {
        ensure!(answers(place, "client", v6)? == "outbound");
        let line = who(&place.pod("beside").ns, at(place.pod("client").ip(v6), 9999))?;
        ensure!(answerer(&line) == "plaintext", "the plan is lost: {line}");
    }
    let _beside = place.real("beside", PORT)?;
    let line = who(&place.pod("client").ns, at(place.pod("beside").ip(false), PORT))?;
    ensure!(answerer(&line) == "server", "what was taught is lost");
    place.programs.set_destinations(&Default::default())?;
    drop(stand_in);
    Ok(())
}

/// The programs are swapped underneath a stream of connections, of which none may reach the server.
fn restarts_under_load(place: &mut Place) -> Result<()> {
    let stand_in = place.enrol("client", CaptureMode::Mark)?;
    let real = place.real("server", PORT)?;
    let (stop, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (client, to) = (place.pod("client").ns.clone(), at(place.pod("server").ip(false), PORT));
    std::thread::scope(|scope| -> Result<()> {
        let dialling = scope.spawn(|| -> Result<()> {
            while !stop.load(Ordering::Relaxed) {
                let line = who(&client, to)?;
                ensure!(answerer(&line) == "outbound", "{line}");
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        let restarted = (0..10).try_for_each(|_| -> Result<()> {
            let before = count.load(Ordering::Relaxed);
            let next = load(&place.config, Features::detect())?;
            // As the product does: the pod is enrolled again, its steer program swapped.
            stand_in.enrol_with(&next)?;
            wait::until_true(wait::PATIENCE, "connections go on", || {
                count.load(Ordering::Relaxed) > before || dialling.is_finished()
            })
        });
        stop.store(true, Ordering::Relaxed);
        dialling.join().unwrap_or_else(|p| std::panic::resume_unwind(p))?;
        restarted
    })?;
    ensure!(real.peers().is_empty(), "{:?}", real.peers());
    Ok(())
}

fn ended(place: &mut Place) -> Result<()> {
    place.topology.add_pod("mayfly", "n1")?;
    let stand_in = place.enrol("mayfly", CaptureMode::Mark)?;
    let kept = place.enrol("client", CaptureMode::Mark)?;
    let (cookie, kept_cookie) = (stand_in.cookie(), kept.cookie());
    stand_in.abandon();
    kept.abandon();
    place.topology.remove_pod("mayfly")?;
    // The namespace ends when the last of its sockets does.
    let pin = place.config.pin_root.join(format!("a/v1/pods/{cookie}"));
    wait::until_true(wait::PATIENCE, "the namespace is gone and forgotten", || {
        place.programs = Arc::new(load(&place.config, Features::detect()).unwrap());
        !fs::exists(&pin).unwrap_or(true)
    })?;
    ensure!(place.programs.enrolled()? == [kept_cookie]);
    place.programs.unenrol(kept_cookie)?;
    Ok(())
}

/// An operator changes where the programs attach: those at the old place go.
fn other_cgroup(place: &mut Place) -> Result<()> {
    let folder = cgroup_root()?.join(place.topology.prefix());
    fs::create_dir(&folder)?;
    let moved = bpf::Config { cgroup: Some(folder.clone()), ..place.config.clone() };
    let result = (|| {
        let stand_in = place.enrol("client", CaptureMode::Mark)?;
        let _real = place.real("server", PORT)?;
        ensure!(answers(place, "client", false)? == "outbound");
        // Nobody runs in the new cgroup, so nobody is captured.
        let programs = load(&moved, Features::detect())?;
        ensure!(answers(place, "client", false)? == "server");
        drop(programs);
        let programs = load(&place.config, Features::detect())?;
        ensure!(answers(place, "client", false)? == "outbound");
        drop((programs, stand_in));
        Ok(())
    })();
    fs::remove_dir(&folder)?;
    result
}

/// Another product, or a hand, has detached a program: loading again repairs it.
fn detached(place: &mut Place) -> Result<()> {
    let stand_in = place.enrol("client", CaptureMode::Mark)?;
    let _real = place.real("server", PORT)?;
    let links = place.config.pin_root.join("a/v1/links");
    for program in ["connect4", "connect6"] {
        fs::remove_file(links.join(program))?;
    }
    // The kernel frees links in its own time.
    for v6 in [false, true] {
        wait::until_true(wait::PATIENCE, "the link went with its pin", || {
            answers(place, "client", v6).is_ok_and(|answer| answer == "server")
        })?;
    }
    let next = load(&place.config, Features::detect())?;
    for v6 in [false, true] {
        ensure!(answers(place, "client", v6)? == "outbound");
    }
    drop((next, stand_in));
    Ok(())
}

fn unpinned(place: &mut Place) -> Result<()> {
    let stand_in = place.enrol("client", CaptureMode::Mark)?;
    let _real = place.real("server", PORT)?;
    let _inside = place.real("client", PORT)?;
    place.programs.unenrol(stand_in.cookie())?;
    let folder = place.config.pin_root.join("a/v1/pods");
    fs::remove_dir(&folder)?;
    ensure!(stand_in.enrol().is_err(), "it was pinned in a folder that is gone");
    fails_closed(place)?;
    for v6 in [false, true] {
        let to = at(place.pod("client").ip(v6), PORT);
        let inbound = talk::dial_within(&place.pod("beside").ns, to, Duration::from_millis(500));
        ensure!(inbound.is_err(), "plaintext came in");
    }
    fs::create_dir(&folder)?;
    stand_in.enrol()?;
    ensure!(fs::read_dir(&folder)?.count() == 1, "it is not pinned");
    fails_closed(place)?;
    place.programs.unenrol(stand_in.cookie())?;
    ensure!(answers(place, "client", false)? == "server");
    Ok(())
}

fn of_another(place: &mut Place) -> Result<()> {
    let stand_in = place.enrol("client", CaptureMode::Mark)?;
    let theirs = config(&place.topology, "b");
    let programs = load(&theirs, Features::detect())?;
    let error = stand_in.enrol_with(&programs).err().context("two instances have one pod")?;
    ensure!(error.to_string().contains("another agent of this kernel: a;"), "{error}");
    ensure!(programs.remembered()?.is_empty());
    drop(programs);
    bpf::uninstall(&theirs.pin_root, "b")?;
    ensure!(answers(place, "client", false)? == "outbound");
    place.programs.release(stand_in.cookie())?;
    ensure!(place.programs.enrolled()?.is_empty() && place.programs.remembered()? == [stand_in.cookie()]);
    let _real = place.real("server", PORT)?;
    ensure!(answers(place, "client", false)? == "server");
    place.programs.unenrol(stand_in.cookie())?;
    ensure!(place.programs.remembered()?.is_empty());
    Ok(())
}

/// What lies where ours should lie is not used, and not removed.
fn foreign_pins(place: &mut Place) -> Result<()> {
    let config = config(&place.topology, "b");
    let base = config.pin_root.join("b/v1");
    let cases: [(&str, &str, &str); 4] = [
        ("maps/INBOUND", "maps/PODS", "type 1 with keys of 16"),
        ("maps/COUNTERS", "maps/RANGES", "type 6"),
        ("links/connect4", "maps/PODS", "bpf-link"),
        ("maps/PODS", "links/connect4", "bpf-map"),
    ];
    for (from, onto, found) in cases {
        drop(load(&config, Features::detect())?);
        fs::rename(base.join(from), base.join(onto))?;
        let error = load_error(&config).context("foreign pins were taken")?;
        let BpfError::ForeignPin { path, .. } = &error else { anyhow::bail!("{from}: {error}") };
        ensure!(*path == base.join(onto), "{error}");
        ensure!(error.to_string().contains(found), "{from} as {onto}: {error}");
        ensure!(fs::exists(base.join(onto))?);
        // Not used, but uninstall clears the folder of whatever is in it.
        bpf::uninstall(&config.pin_root, "b")?;
        ensure!(!fs::exists(&base)?);
    }
    // Links of ours, each in the place of the other kind.
    let programs = Arc::new(load(&config, Features::detect())?);
    let stand_in = StandIn::start(&programs, place.pod("beside"), CaptureMode::Mark)?;
    let (pod, link) = (base.join("pods").join(stand_in.cookie().0.to_string()), base.join("links/connect4"));
    fs::rename(&pod, &link)?;
    let error = load_error(&config).context("a namespace's link was taken for the cgroup's")?;
    ensure!(matches!(&error, BpfError::ForeignPin { path, .. } if *path == link), "{error}");
    fs::rename(base.join("links/connect6"), &pod)?;
    let error = stand_in.enrol().err().context("a cgroup's link was taken for the namespace's")?;
    ensure!(error.to_string().contains(&pod.display().to_string()), "{error}");
    drop(stand_in);
    bpf::uninstall(&config.pin_root, "b")?;
    let misnamed = bpf::Config { instance: "../b".to_owned(), ..config.clone() };
    ensure!(matches!(load_error(&misnamed), Some(BpfError::BadInstance(_))));
    let elsewhere = bpf::Config { pin_root: std::env::temp_dir().join("underpass-pins"), ..config };
    ensure!(matches!(load_error(&elsewhere), Some(BpfError::Setup { .. })));
    Ok(())
}

fn load_error(config: &bpf::Config) -> Option<BpfError> {
    Programs::load_with(config, Features::detect()).err()
}

fn messages(place: &mut Place) -> Result<()> {
    static SAID: Said = Said(Mutex::new(Vec::new()));
    // Before anything is loaded that is to speak: it asks for the logger then.
    log::set_logger(&SAID).map_err(|e| anyhow::anyhow!("{e}"))?;
    log::set_max_level(log::LevelFilter::Trace);
    let config = config(&place.topology, "b");
    let programs = Arc::new(load(&config, Features::detect())?);
    programs.set_ranges(&kernel::ranges())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.spawn(programs.forward_logs());
    let stand_in = StandIn::start(&programs, place.pod("client"), CaptureMode::Mark)?;
    ensure!(answers(place, "client", false)? == "outbound");
    stand_in.close();
    fails_closed(place)?;
    let pod = stand_in.cookie();
    for expected in [
        format!("DEBUG captured a connection from namespace {pod} to port {PORT}"),
        format!("INFO refused a connection from namespace {pod}: the agent does not listen there"),
    ] {
        wait::until_true(wait::PATIENCE, &format!("it said: {expected}"), || {
            SAID.0.lock().unwrap().contains(&expected)
        })?;
    }
    drop(stand_in);
    bpf::uninstall(&config.pin_root, "b")?;
    Ok(())
}

/// A log that remembers.
struct Said(Mutex<Vec<String>>);

impl log::Log for Said {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.target().starts_with("underpass") {
            self.0.lock().unwrap().push(format!("{} {}", record.level(), record.args()));
        }
    }

    fn flush(&self) {}
}

/// What does not exist before 6.1 and 5.17 is left out, and the verifier never sees it.
fn fallbacks(place: &mut Place) -> Result<()> {
    let config = config(&place.topology, "b");
    let programs = Arc::new(load(&config, Features { set_retval: false, ingress_ifindex: false })?);
    programs.set_ranges(&kernel::ranges())?;
    let _real = place.real("server", PORT)?;
    let stand_in = StandIn::start(&programs, place.pod("beside"), CaptureMode::Mark)?;
    for v6 in [false, true] {
        ensure!(answers(place, "beside", v6)? == "outbound");
        stand_in.inbound(InboundPlan::all(InboundAction::Drop))?;
        let _inside = place.real("beside", 7000)?;
        let local = if v6 { "::1".parse()? } else { "127.0.0.1".parse()? };
        for ip in [local, place.pod("beside").ip(v6)] {
            ensure!(answerer(&who(&place.pod("beside").ns, at(ip, 7000))?) == "server");
        }
    }
    stand_in.close();
    for v6 in [false, true] {
        let socket = tcp(&place.pod("beside").ns, v6, |_| Ok(()))?;
        let error =
            connect_at_once(&socket, at(place.pod("server").ip(v6), PORT)).err().context("connected")?;
        ensure!(error.raw_os_error() == Some(libc::EPERM), "{error}");
    }
    drop(stand_in);
    bpf::uninstall(&config.pin_root, "b")?;
    Ok(())
}

fn probe(place: &mut Place) -> Result<()> {
    let report = bpf::Report::probe(&place.config);
    ensure!(report.is_usable(), "{report}");
    ensure!(report.requirements.len() > 12, "{report}");
    let nowhere = bpf::Config { cgroup: Some(PathBuf::from("/proc")), ..place.config.clone() };
    let report = bpf::Report::probe(&nowhere);
    ensure!(!report.is_usable() && report.missing().count() == 1, "{report}");
    let error = Programs::load(&nowhere).err().context("loaded without a cgroup")?.to_string();
    ensure!(error.contains("cgroup v2") && error.contains("underpass check"), "{error}");
    let nowhere = bpf::Config { pin_root: "/tmp/x".into(), ..place.config.clone() };
    ensure!(!bpf::Report::probe(&nowhere).is_usable());
    Ok(())
}

fn cgroup_root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    Ok(line.and_then(|line| line.split(' ').nth(1)).context("no cgroup v2")?.into())
}
