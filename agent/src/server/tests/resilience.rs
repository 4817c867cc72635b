//! What the agent does when the world around it does not behave.

use std::time::Instant;

use identity::unix_time;
use runtime::workload_api::IdentityStream;

use super::*;

/// Waits for something with a generous limit.
async fn until<F: Future<Output = bool>>(what: &str, look: impl Fn() -> F) {
    let began = Instant::now();
    while !look().await {
        assert!(began.elapsed() < Duration::from_secs(60), "{what} did not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn scene_of(ttl: Duration) -> Scene {
    let scene = Scene::start();
    *scene.ca.ttl.lock().unwrap() = Duration::from_secs(3600);
    scene.token("t").ca.entries.lock().unwrap().push(own_entry("a", "/a"));
    // The agent's own SVID lives long; workloads' do not.
    *scene.ca.ttl.lock().unwrap() = ttl;
    scene
}

#[tokio::test]
async fn a_ca_that_is_away_for_longer_than_a_life_is_served_over_to_the_last_second_and_then_refused() {
    let scene = scene_of(Duration::from_secs(6));
    let running = scene.agent();
    let mut stream = IdentityStream::open(&scene.endpoint()).await.unwrap();
    let mut last = stream.next().await.unwrap().unwrap().svid().clone();
    scene.server.stop().await;
    let refused = loop {
        match stream.next().await.unwrap() {
            Ok(identity) => last = identity.svid().clone(),
            Err(refused) => break refused,
        }
    };
    let late = Clock::system().now().duration_since(last.not_after());
    assert!(late.is_ok(), "it was refused while it was valid, until {:?}", last.not_after());
    assert!(late.unwrap() < Duration::from_secs(3), "and in the second of its end");
    assert_eq!(refused.reason(), "SVID_ENDED");
    assert_eq!(fetch_x509(&scene.endpoint()).await.unwrap_err().reason(), "SVID_ENDED", "whoever asks is told at once");
    *scene.ca.ttl.lock().unwrap() = Duration::from_secs(600);
    let _again = Server::start_at(scene.ca.clone(), "/spire/server", scene.server.addr);
    until("an SVID after the outage", || async { fetch_x509(&scene.endpoint()).await.is_ok() }).await;
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_client_that_never_reads_keeps_nobody_from_the_newest() {
    let service = crate::fake::Service::start(workload_api);
    service.publish([own_entry("a", "/a")]).rotate();
    let mut deaf = Vec::new();
    for _ in 0..20 {
        // Opened, and then nobody looks at it again.
        deaf.push(IdentityStream::open(&service.socket.clone().into()).await.unwrap());
    }
    for _ in 0..300 {
        service.rotate();
        tokio::task::yield_now().await;
    }
    let newest = service.state.current().held["a"].svid.serial().to_owned();
    let began = Instant::now();
    let fetched = fetch_x509(&service.socket.clone().into()).await.unwrap();
    assert_eq!(fetched.svid().serial(), newest);
    assert!(began.elapsed() < Duration::from_secs(10));
    // Who looks again sees the state of now, after what was on its way.
    for _ in 0..400 {
        if deaf[0].next().await.unwrap().unwrap().svid().serial() == newest {
            return;
        }
    }
    panic!("the newest never came");
}

#[tokio::test]
async fn a_flood_of_streams_of_one_process_leaves_room_for_the_others() {
    let service = crate::fake::Service::start(workload_api);
    service.publish([own_entry("a", "/a")]).rotate();
    let mut open = Vec::new();
    let refused = loop {
        let mut stream = match IdentityStream::open(&service.socket.clone().into()).await {
            Ok(stream) => stream,
            Err(refused) => break refused,
        };
        match stream.next().await.unwrap() {
            Ok(_) => open.push(stream),
            Err(refused) => break refused,
        }
    };
    assert_eq!(open.len(), crate::caller::STREAMS_PER_PROCESS_MAX);
    assert_eq!(refused.reason(), "TOO_MANY_STREAMS");
    assert!(service.desk.streams.count(1, 12_345).is_ok(), "another process has room");
    open.pop();
    until("room again", || async { fetch_x509(&service.socket.clone().into()).await.is_ok() }).await;
}

#[tokio::test]
async fn a_socket_is_reached_through_a_link_and_never_made_over_one() {
    let scene = scene_of(Duration::from_secs(600));
    let running = scene.agent();
    running.wait_ready().await;
    let link = scene.dir.path().join("link.sock");
    std::os::unix::fs::symlink(scene.settings().workload_api, &link).unwrap();
    assert!(fetch_x509(&link.clone().into()).await.is_ok());
    let mut settings = scene.settings();
    (settings.workload_api, settings.data_dir) = (link, scene.dir.path().join("other"));
    let error = settings.build(LogControl::detached()).map(drop).unwrap_err();
    assert_eq!(error.reason(), "SOCKET_PATH_OCCUPIED");
    running.stop().await.unwrap();
}

#[tokio::test]
async fn the_workload_api_answers_on_loopback_to_processes_it_can_tell() {
    let scene = scene_of(Duration::from_secs(600));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let running = scene.agent_with(|settings| settings.workload_api_tcp = Some(port));
    running.wait_ready().await;
    let fetched = fetch_x509(&Endpoint::Tcp(port)).await.unwrap();
    assert_eq!(fetched.svid().id().path(), "/a");
    scene.ca.entries.lock().unwrap()[0] = entry("a", "/a", &["unix:uid:4000000"]);
    until("the refusal of another user", || async {
        fetch_x509(&Endpoint::Tcp(port)).await.is_err_and(|error| error.is_no_identity())
    })
    .await;
    running.stop().await.unwrap();
}

#[tokio::test]
async fn an_agent_killed_at_any_moment_starts_again_with_what_it_had() {
    let scene = scene_of(Duration::from_secs(600));
    for round in 0..5 {
        let running = scene.agent();
        fetch_x509(&scene.endpoint()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(60 * round)).await;
        // Nothing is drained or written any more, as by SIGKILL.
        running.task.abort();
        let _ = running.task.await;
        for name in ["agent.pem", "bundle.json"] {
            assert!(scene.settings().data_dir.join(name).exists(), "{name} in round {round}");
        }
    }
    assert_eq!(scene.ca.joins.load(Ordering::SeqCst), 1, "it never had to join again");
}

#[tokio::test]
async fn a_full_disk_does_not_stop_the_service() {
    let scene = scene_of(Duration::from_secs(4));
    let running = scene.agent();
    running.wait_ready().await;
    // Directories where the new files are to be written make every write fail, as no room does.
    for name in ["cache.new", "bundle.new", "agent.new"] {
        let at = scene.settings().data_dir.join(name);
        let _ = std::fs::remove_file(&at);
        let made = std::fs::create_dir_all(at.join("x"));
        assert!(made.is_ok(), "{name}: {made:?}");
    }
    let first = fetch_x509(&scene.endpoint()).await.unwrap().svid().serial().to_owned();
    until("a renewal on a full disk", || async {
        let now = fetch_x509(&scene.endpoint()).await.unwrap();
        let valid = unix_time(now.svid().not_after()) > unix_time(Clock::system().now());
        assert!(valid);
        now.svid().serial() != first
    })
    .await;
    running.stop().await.unwrap();
}
