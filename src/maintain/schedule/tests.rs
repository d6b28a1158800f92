use std::sync::atomic::{AtomicU32, Ordering};

use tokio::runtime::Builder;
use tokio::task::LocalSet;

use super::*;
use crate::metrics::Metrics;

const HOUR: Duration = Duration::from_hours(1);

fn job(root: &Path, every: Duration, run: impl Fn(Stop) -> Running + Send + Sync + 'static) -> Job {
    Job {
        name: "test",
        registry: "main".to_owned(),
        settings: String::new(),
        every,
        tree: root.join("tree"),
        lock: root.join("locks/test"),
        locks_itself: false,
        turn: Turn::Short,
        metrics: Metrics::new().maintenance("main"),
        run: Arc::new(run),
    }
}

fn on_local_set(future: impl Future<Output = ()>) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, future);
}

#[test]
fn a_job_is_due_by_what_its_lock_file_says() {
    let root = tempfile::tempdir().unwrap();
    let job = job(root.path(), HOUR, |_| Box::pin(async { Ran::Stopped }));
    let ran = |ago: Duration| open_lock(&job.lock).unwrap().set_modified(SystemTime::now() - ago).unwrap();
    on_local_set(async {
        assert_eq!(due(&job, &mut None).await, HOUR, "there is no tree");
        assert!(!job.lock.exists());
        fs::create_dir(&job.tree).unwrap();
        assert!(due(&job, &mut None).await > HOUR / 2, "it counts from when the tree is first seen");
        assert!(job.lock.exists());

        ran(HOUR * 2);
        let mut last = None;
        assert_eq!(due(&job, &mut last).await, Duration::ZERO);
        // Another process runs it first.
        ran(HOUR / 4);
        let wait = due(&job, &mut last).await;
        assert!(wait > HOUR / 2 && wait < HOUR, "{wait:?}");
        // A clock that was set back must not put it off for ever.
        open_lock(&job.lock).unwrap().set_modified(SystemTime::now() + HOUR * 1000).unwrap();
        assert_eq!(due(&job, &mut last).await, HOUR);
        assert_eq!(due(&job, &mut last).await, Duration::ZERO);
    });
}

#[test]
fn what_a_run_comes_to_is_noted_unless_it_was_interrupted() {
    let cases: [(fn() -> Ran, bool); 4] = [
        (|| Ran::Done(None), true),
        (|| Ran::Failed("on purpose".into()), true),
        (|| Ran::Stopped, false),
        (|| Ran::Busy, false),
    ];
    for (ran, is_noted) in cases {
        let root = tempfile::tempdir().unwrap();
        let job = job(root.path(), HOUR, move |_| Box::pin(async move { ran() }));
        fs::create_dir(root.path().join("locks")).unwrap();
        let long_ago = SystemTime::now() - HOUR * 2;
        open_lock(&job.lock).unwrap().set_modified(long_ago).unwrap();
        on_local_set(async {
            let wait = attempt(&job, &Stop::new()).await;
            assert_eq!(wait < HOUR, matches!(ran(), Ran::Busy));
        });
        let noted = fs::metadata(&job.lock).unwrap().modified().unwrap();
        assert_eq!(noted > long_ago + HOUR, is_noted, "{:?}", ran());
    }
}

#[test]
fn one_process_runs_a_job_at_a_time() {
    let root = tempfile::tempdir().unwrap();
    let job = job(root.path(), HOUR, |_| Box::pin(async { panic!("it runs") }));
    fs::create_dir(root.path().join("locks")).unwrap();
    let held = lock(&job.lock).unwrap().unwrap();
    on_local_set(async {
        assert_eq!(attempt(&job, &Stop::new()).await, BUSY_WAIT);
    });
    drop(held);
    assert!(lock(&job.lock).unwrap().is_some());
}

#[test]
fn a_job_that_the_plan_drops_ends_and_one_that_it_keeps_goes_on() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("tree")).unwrap();
    let begun = Arc::new(AtomicU32::new(0));
    let stopped = Arc::new(AtomicU32::new(0));
    let counts = (Arc::clone(&begun), Arc::clone(&stopped));
    let until_stopped = move |stop: Stop| {
        let (begun, stopped) = counts.clone();
        Box::pin(async move {
            begun.fetch_add(1, Ordering::SeqCst);
            while !stop.is_set() {
                sleep(Duration::from_millis(1)).await;
            }
            stopped.fetch_add(1, Ordering::SeqCst);
            Ran::Stopped
        }) as Running
    };
    let kept = job(root.path(), Duration::from_millis(10), until_stopped);
    let other = Job { every: HOUR, name: "other", lock: root.path().join("locks/other"), ..kept.clone() };
    on_local_set(async {
        let plan = |jobs: &[&Job]| Plan { jobs: jobs.iter().copied().cloned().collect(), stores: Vec::new() };
        let (plans, wanted) = watch::channel(plan(&[&kept]));
        spawn_local(run(wanted));
        let reaches = async |count: &AtomicU32, n| {
            while count.load(Ordering::SeqCst) < n {
                sleep(Duration::from_millis(1)).await;
            }
        };
        reaches(&begun, 1).await;
        plans.send_replace(plan(&[&other, &kept]));
        sleep(Duration::from_millis(50)).await;
        assert_eq!((begun.load(Ordering::SeqCst), stopped.load(Ordering::SeqCst)), (1, 0));
        plans.send_replace(plan(&[&other]));
        reaches(&stopped, 1).await;
        // Wanted again: it begins anew.
        plans.send_replace(plan(&[&kept]));
        reaches(&begun, 2).await;
    });
}
