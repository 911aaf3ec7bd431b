//! One probe, and the loop of probes with the timeline it leaves.
//!
//! A loop is a [`ProbeSpec`] and nothing else; what a finished timeline means is a health plugin's to say. A probe has one connection
//! and one request, follows no redirect and reads the beginning of the body alone. From where it reaches what it asks is
//! [`crate::reach`]'s.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use jiji_model::plan::HOLD_FAILURES;
use jiji_model::probe::{Probe, ProbeResult, ProbeSpec, Timeline};
use tokio::net::TcpStream;

use crate::command::plain;
use crate::reach::Reach;

/// How much of a body or an output is kept, in bytes.
pub const BODY: usize = 512;

/// How many probes a timeline keeps of its beginning, and of its end.
const KEPT: usize = 16;

/// How many probes a timeline keeps.
pub const MOST: usize = 2 * KEPT;

/// In the first second probes come quicker than the interval says, since most services are there long before it ends: at first after
/// the least of these times, then ever slower up to the most.
const EAGER: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(100));

/// `GET` of `path` at `address`. Gives up after `timeout`.
pub async fn http(
    reach: &Reach,
    address: SocketAddrV4,
    host: Option<&str>,
    path: &str,
    timeout: Duration,
) -> ProbeResult {
    let ask = async |stream| match get(stream, &host.map_or_else(|| address.to_string(), str::to_owned), path).await {
        Ok(result) => result,
        Err(cause) => ProbeResult::Broken { cause },
    };
    connected(reach, address, timeout, ask).await
}

/// A connection to `address`, and what comes of it within `timeout`.
async fn connected(
    reach: &Reach,
    address: SocketAddrV4,
    timeout: Duration,
    ask: impl AsyncFnOnce(TcpStream) -> ProbeResult,
) -> ProbeResult {
    // What it takes to get at a way there says nothing of who is asked, so it is no part of the probe's time.
    let way = match reach.way(address).await {
        Ok(way) => way,
        Err(error) => return ProbeResult::Broken { cause: error.to_string() },
    };
    let probe = async {
        match way.connect().await {
            Ok(stream) => ask(stream).await,
            Err(error) => broken(&error),
        }
    };
    let result = tokio::time::timeout(timeout, probe).await.unwrap_or(ProbeResult::TimedOut);
    if matches!(result, ProbeResult::Broken { .. } | ProbeResult::TimedOut) {
        reach.forget();
    }
    result
}

async fn get(stream: TcpStream, host: &str, path: &str) -> Result<ProbeResult, String> {
    let request = hyper::Request::builder()
        .uri(path)
        .header(hyper::header::HOST, host)
        .header(hyper::header::USER_AGENT, "jiji-host")
        .header(hyper::header::CONNECTION, "close")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| chain(&error))?;
    let answer = async {
        let mut response = sender.send_request(request).await.map_err(|error| chain(&error))?;
        let mut body = Vec::new();
        while body.len() < BODY {
            match response.frame().await {
                Some(Ok(frame)) => body.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
                // The status came whole; a body that breaks off is shown as far as it came.
                Some(Err(_)) | None => break,
            }
        }
        let location = response.headers().get(hyper::header::LOCATION);
        Ok(ProbeResult::Http {
            status: response.status().as_u16(),
            body: beginning(&body),
            location: location.map(|value| beginning(value.as_bytes())),
        })
    };
    tokio::pin!(answer);
    tokio::pin!(connection);
    tokio::select! {
        answer = &mut answer => answer,
        // The connection may end together with the answer.
        ended = &mut connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(chain(&error)),
        },
    }
}

/// A TCP connection to `address`.
pub async fn tcp(reach: &Reach, address: SocketAddrV4, timeout: Duration) -> ProbeResult {
    connected(reach, address, timeout, async |_| ProbeResult::Connected).await
}

fn broken(error: &std::io::Error) -> ProbeResult {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => ProbeResult::Refused,
        std::io::ErrorKind::TimedOut => ProbeResult::TimedOut,
        _ => ProbeResult::Broken { cause: error.to_string() },
    }
}

fn chain(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// The beginning of some bytes, fit for people.
pub fn beginning(bytes: &[u8]) -> String {
    plain(&String::from_utf8_lossy(&bytes[..bytes.len().min(BODY)]))
}

/// Whether a specification calls a result healthy.
pub fn healthy(spec: &ProbeSpec, result: &ProbeResult) -> bool {
    match result {
        ProbeResult::Http { status, .. } => (spec.status_from..=spec.status_to).contains(status),
        ProbeResult::Connected => true,
        ProbeResult::Exit { code, .. } => *code == 0,
        _ => false,
    }
}

/// What ends a loop before its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The container ended.
    NotRunning(ProbeResult),
    /// Somebody asked to stop.
    Interrupted,
}

/// What a loop of probes waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// `healthy_after` probes in a row succeed before the deadline.
    Healthy,
    /// So much time passes without [`HOLD_FAILURES`] failed probes in a row.
    Passed(Duration),
}

/// Probes until what is waited for is so or cannot be any more, or `stop` says so. `probe` makes one probe, `each` sees every one.
pub async fn watch<F: Future<Output = ProbeResult>>(
    spec: &ProbeSpec,
    until: Until,
    mut probe: impl FnMut(Duration) -> F,
    stop: impl Future<Output = Stop>,
    mut each: impl FnMut(&Probe),
) -> Timeline {
    let begun = Instant::now();
    let deadline = match until {
        Until::Healthy => Duration::from_millis(spec.deadline_ms.into()),
        Until::Passed(time) => time,
    };
    let interval = Duration::from_millis(spec.interval_ms.max(10).into());
    let timeout = Duration::from_millis(spec.timeout_ms.max(1).into());
    let mut timeline = Timeline { healthy: false, took_ms: 0, made: 0, probes: Vec::new(), findings: None };
    let (mut in_a_row, mut failed_in_a_row) = (0, 0);
    let mut next = Duration::ZERO;
    tokio::pin!(stop);
    loop {
        let wait = next.saturating_sub(begun.elapsed());
        if begun.elapsed() + wait >= deadline {
            if let Until::Passed(_) = until {
                // The container may still end in what is left of the time.
                let left = deadline.saturating_sub(begun.elapsed());
                match tokio::time::timeout(left, &mut stop).await {
                    Err(_) => timeline.healthy = true,
                    Ok(Stop::NotRunning(result)) => {
                        let last = Probe { at_ms: millis(begun.elapsed()), took_ms: 0, healthy: false, result };
                        each(&last);
                        timeline.made += 1;
                        timeline.probes.push(last);
                    }
                    Ok(Stop::Interrupted) => {}
                }
            }
            break;
        }
        let at = wait + begun.elapsed();
        let one = async {
            tokio::time::sleep(wait).await;
            let left = match until {
                Until::Healthy => deadline.saturating_sub(begun.elapsed()).max(Duration::from_millis(1)),
                // What is asked at the end of the time gets its own.
                Until::Passed(_) => timeout,
            };
            probe(timeout.min(left)).await
        };
        let (result, over) = tokio::select! {
            biased;
            stopped = &mut stop => match stopped {
                Stop::NotRunning(result) => (result, true),
                Stop::Interrupted => break,
            },
            result = one => (result, false),
        };
        let at = at.min(begun.elapsed());
        let made =
            Probe { at_ms: millis(at), took_ms: millis(begun.elapsed() - at), healthy: healthy(spec, &result), result };
        each(&made);
        (in_a_row, failed_in_a_row) = if made.healthy { (in_a_row + 1, 0) } else { (0, failed_in_a_row + 1) };
        timeline.made += 1;
        timeline.probes.push(made);
        if timeline.probes.len() > 2 * KEPT {
            timeline.probes.remove(KEPT);
        }
        if over {
            break;
        }
        match until {
            Until::Healthy if in_a_row >= spec.healthy_after.max(1) => {
                timeline.healthy = true;
                break;
            }
            Until::Passed(_) if failed_in_a_row >= HOLD_FAILURES => break,
            _ => {}
        }
        let eager = until == Until::Healthy && at < Duration::from_secs(1);
        next = at + if eager { interval.min(eager_pause(at, begun.elapsed() - at)) } else { interval };
    }
    timeline.took_ms = millis(begun.elapsed());
    timeline
}

/// How long after the beginning of a probe the next one comes in the first second. `at`: when that probe began; `took`: how long it took,
/// of which one that is dear (a command in a container) leaves as much again for others.
fn eager_pause(at: Duration, took: Duration) -> Duration {
    (at / 2).max(took * 2).clamp(EAGER.0, EAGER.1)
}

/// Whole milliseconds, as the protocol writes durations.
pub fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// Whether an address is this host's own: only such a one can be bound.
pub fn is_own(address: Ipv4Addr) -> bool {
    !address.is_unspecified() && std::net::UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use jiji_model::project::Check;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn spec(interval_ms: u32, deadline_ms: u32, healthy_after: u32) -> ProbeSpec {
        ProbeSpec {
            check: Check::Tcp { port: 1 },
            interval_ms,
            timeout_ms: 1000,
            healthy_after,
            deadline_ms,
            status_from: 200,
            status_to: 299,
        }
    }

    #[test]
    fn probes_are_quick_at_first_and_then_ever_slower() {
        let ms = Duration::from_millis;
        let mut times = vec![0];
        while times.last().is_some_and(|at| *at < 400) {
            let at = ms(*times.last().expect("one"));
            times.push(u64::try_from((at + eager_pause(at, ms(1))).as_millis()).expect("few"));
        }
        assert_eq!(times, [0, 20, 40, 60, 90, 135, 202, 302, 402]);
        assert_eq!(eager_pause(ms(0), ms(45)), ms(90), "a command in a container");
        assert_eq!(eager_pause(ms(0), ms(700)), ms(100));
    }

    fn status(status: u16) -> ProbeResult {
        ProbeResult::Http { status, body: String::new(), location: None }
    }

    async fn answering(answer: &'static [u8]) -> SocketAddrV4 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let std::net::SocketAddr::V4(address) = listener.local_addr().expect("an address") else {
            panic!("bound to IPv4");
        };
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer).await;
            // Kept open: a probe must not wait for the end.
            tokio::time::sleep(Duration::from_secs(5)).await;
        });
        address
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn an_answer_is_told_with_its_status_its_bodys_beginning_and_its_location() {
        let address = answering(b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 6\r\n\r\nhel\x07lo").await;
        assert_eq!(
            http(&Reach::Own, address, None, "/up", SECOND).await,
            ProbeResult::Http { status: 302, body: "hel\u{fffd}lo".into(), location: Some("/login".into()) }
        );
    }

    #[tokio::test]
    async fn refused_silent_and_foreign_ports_are_told_apart() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let std::net::SocketAddr::V4(address) = silent.local_addr().expect("an address") else {
            panic!("bound to IPv4");
        };
        let short = Duration::from_millis(100);
        assert_eq!(http(&Reach::Own, address, None, "/", short).await, ProbeResult::TimedOut);
        drop(silent);
        assert_eq!(http(&Reach::Own, address, None, "/", SECOND).await, ProbeResult::Refused);
        assert_eq!(tcp(&Reach::Own, address, SECOND).await, ProbeResult::Refused);
        let foreign = answering(b"SSH-2.0-OpenSSH\r\n").await;
        assert!(matches!(http(&Reach::Own, foreign, None, "/", SECOND).await, ProbeResult::Broken { .. }));
        let path = answering(b"").await;
        assert!(matches!(http(&Reach::Own, path, None, "no path", SECOND).await, ProbeResult::Broken { .. }));
    }

    #[tokio::test]
    async fn a_loop_ends_when_enough_in_a_row_are_healthy_and_is_quick_at_first() {
        let results = Cell::new(0);
        let probe = |_| {
            results.set(results.get() + 1);
            let status = status(if [2, 4, 5].contains(&results.get()) { 200 } else { 500 });
            async move { status }
        };
        let mut seen = 0;
        let timeline =
            watch(&spec(60_000, 5_000, 2), Until::Healthy, probe, std::future::pending(), |_| seen += 1).await;
        assert!(timeline.healthy && timeline.took_ms < 1000, "{timeline:?}");
        assert_eq!((timeline.made, seen), (5, 5));
    }

    #[tokio::test]
    async fn what_stays_healthy_passes_and_a_lost_probe_alone_fails_nothing() {
        let made = Cell::new(0);
        let probe = |_| {
            made.set(made.get() + 1);
            // Two in a row are lost, again and again.
            let status = status(if made.get() % 3 == 0 { 200 } else { 500 });
            async move { status }
        };
        let until = Until::Passed(Duration::from_millis(200));
        let timeline = watch(&spec(10, 0, 1), until, probe, std::future::pending(), |_| {}).await;
        assert!(timeline.healthy && timeline.took_ms >= 200 && timeline.made > 3, "{timeline:?}");
        let sick = |_| async { status(500) };
        let timeline = watch(&spec(10, 0, 1), until, sick, std::future::pending(), |_| {}).await;
        assert!(!timeline.healthy && timeline.made == HOLD_FAILURES, "{timeline:?}");
    }

    #[tokio::test]
    async fn what_ends_while_it_is_watched_fails_even_between_two_probes() {
        let ended = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Stop::NotRunning(ProbeResult::NotRunning { exit: Some(3), oom: false })
        };
        let until = Until::Passed(Duration::from_millis(300));
        let timeline = watch(&spec(60_000, 0, 1), until, |_| async { status(200) }, ended, |_| {}).await;
        assert!(!timeline.healthy, "{timeline:?}");
    }

    #[tokio::test]
    async fn a_loop_gives_up_at_its_deadline_and_keeps_its_first_and_last_probes() {
        let results = Cell::new(500);
        let probe = |_| {
            results.set(results.get() + 1);
            let status = status(results.get());
            async move { status }
        };
        let timeline = watch(&spec(10, 600, 1), Until::Healthy, probe, std::future::pending(), |_| {}).await;
        assert!(!timeline.healthy && (550..900).contains(&timeline.took_ms), "{timeline:?}");
        assert!(timeline.made > 40 && timeline.probes.len() == 32, "{}", timeline.made);
        assert_eq!(timeline.probes[0].result, status(501));
        assert_eq!(timeline.probes[31].result, status(results.get()));
    }

    #[tokio::test]
    async fn a_container_that_ended_and_an_interrupt_end_the_loop_at_once() {
        let hangs = |_| std::future::pending();
        let gone = ProbeResult::NotRunning { exit: Some(1), oom: false };
        let stop = async { Stop::NotRunning(gone.clone()) };
        let timeline = watch(&spec(1000, 60_000, 1), Until::Healthy, hangs, stop, |_| {}).await;
        assert_eq!(timeline.probes[0].result, gone);
        let timeline = watch(&spec(1000, 60_000, 1), Until::Healthy, hangs, async { Stop::Interrupted }, |_| {}).await;
        assert!(timeline.probes.is_empty() && !timeline.healthy);
    }

    #[test]
    fn loopback_is_the_hosts_own_and_a_documentation_address_is_not() {
        assert!(
            is_own(Ipv4Addr::LOCALHOST) && !is_own(Ipv4Addr::new(203, 0, 113, 7)) && !is_own(Ipv4Addr::UNSPECIFIED)
        );
    }
}
