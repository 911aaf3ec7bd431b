//! A relay in front of each host's sshd that adds a round trip time and counts what passes.
//!
//! The kernel may lack netem, so distance is simulated: each direction is delayed by half the round trip time and a new
//! connection by a whole one, with no more bytes under way than the line holds (its bandwidth-delay product).

use std::{
    collections::VecDeque,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};

use crate::LabError;

/// The simulated bandwidth, in bytes per second: 1 Gbit/s.
const BANDWIDTH: f64 = 125e6;

/// What passed through a relay since the lab is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// Connections that were made.
    pub connections: u64,
    /// Bytes from the operator to the host.
    pub sent: u64,
    /// Bytes from the host to the operator.
    pub received: u64,
    /// How often the direction changed from host to operator back to operator to host: a bound on the round trips that were
    /// waited for.
    pub turns: u64,
}

/// What a relay process is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The round trip time in milliseconds.
    pub rtt_ms: f64,
    /// The lines to relay.
    pub lines: Vec<Line>,
}

/// One listening address and where it leads.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Line {
    pub listen: SocketAddr,
    pub target: SocketAddr,
    /// The file that shows this line's [`Traffic`].
    pub traffic: PathBuf,
}

/// Relays until killed.
pub(crate) fn serve(order: &Path) -> Result<(), LabError> {
    let text = fs::read(order).map_err(LabError::file("read", order))?;
    let order: Order = serde_json::from_slice(&text).map_err(LabError::json("the relay's order"))?;
    let rtt = Duration::from_secs_f64(order.rtt_ms / 1e3);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(LabError::system("start the relay"))?;
    runtime.block_on(async {
        let mut counters = Vec::new();
        for line in order.lines {
            let listener = TcpListener::bind(line.listen).await.map_err(LabError::system("listen as a relay"))?;
            let counter = Counter::default();
            tokio::spawn(accept(listener, line.target, rtt, counter.clone()));
            counters.push((line.traffic, counter, None));
        }
        loop {
            for (path, counter, written) in &mut counters {
                let now = counter.get().traffic;
                if *written != Some(now) {
                    write(path, now)?;
                    *written = Some(now);
                }
            }
            sleep(Duration::from_millis(20)).await;
        }
    })
}

/// Replaces the file whole, so that a reader never sees half of it.
fn write(path: &Path, traffic: Traffic) -> Result<(), LabError> {
    let text = serde_json::to_string(&traffic).map_err(LabError::json("a relay's count"))?;
    let fresh = path.with_extension("new");
    fs::write(&fresh, text).map_err(LabError::file("write", &fresh))?;
    fs::rename(&fresh, path).map_err(LabError::file("replace", path))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Out,
    Back,
}

#[derive(Debug, Default)]
struct Count {
    traffic: Traffic,
    last: Option<Direction>,
}

#[derive(Debug, Clone, Default)]
struct Counter(Arc<Mutex<Count>>);

impl Counter {
    fn get(&self) -> MutexGuard<'_, Count> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, direction: Direction, bytes: usize) {
        let mut count = self.get();
        match direction {
            Direction::Out => count.traffic.sent += bytes as u64,
            Direction::Back => count.traffic.received += bytes as u64,
        }
        if direction == Direction::Out && count.last == Some(Direction::Back) {
            count.traffic.turns += 1;
        }
        count.last = Some(direction);
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, rtt: Duration, counter: Counter) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            continue;
        };
        let counter = counter.clone();
        tokio::spawn(async move {
            sleep(rtt).await;
            let Ok(server) = TcpStream::connect(target).await else {
                return;
            };
            // Either may fail on a connection that is gone already; then there is nothing to relay.
            if client.set_nodelay(true).is_err() || server.set_nodelay(true).is_err() {
                return;
            }
            counter.get().traffic.connections += 1;
            let (client_read, client_write) = client.into_split();
            let (server_read, server_write) = server.into_split();
            tokio::join!(
                carry(client_read, server_write, Direction::Out, rtt / 2, counter.clone()),
                carry(server_read, client_write, Direction::Back, rtt / 2, counter),
            );
        });
    }
}

/// Bytes on their way, each piece with the time at which it arrives.
#[derive(Default)]
struct Flow {
    pieces: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    ended: bool,
}

#[derive(Default)]
struct Wire {
    flow: Mutex<Flow>,
    changed: Notify,
}

impl Wire {
    fn get(&self) -> MutexGuard<'_, Flow> {
        self.flow.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    direction: Direction,
    delay: Duration,
    counter: Counter,
) {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number of bytes")]
    let room = ((BANDWIDTH * delay.as_secs_f64()) as usize).max(64 * 1024);
    let wire = Wire::default();
    let take_in = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            while wire.get().bytes >= room {
                wire.changed.notified().await;
            }
            let read = from.read(&mut buffer).await.unwrap_or(0);
            if read > 0 {
                counter.add(direction, read);
                let mut flow = wire.get();
                flow.pieces.push_back((Instant::now() + delay, buffer[..read].to_vec()));
                flow.bytes += read;
            } else {
                wire.get().ended = true;
            }
            wire.changed.notify_waiters();
            if read == 0 {
                return;
            }
        }
    };
    let give_out = async {
        loop {
            let waiting = wire.changed.notified();
            let next = wire.get().pieces.pop_front();
            match next {
                Some((due, bytes)) => {
                    sleep_until(due).await;
                    wire.get().bytes -= bytes.len();
                    wire.changed.notify_waiters();
                    if to.write_all(&bytes).await.is_err() {
                        return false;
                    }
                }
                None if wire.get().ended => {
                    sleep(delay).await;
                    return to.shutdown().await.is_ok();
                }
                None => waiting.await,
            }
        }
    };
    tokio::pin!(take_in, give_out);
    let mut reading = true;
    loop {
        tokio::select! {
            () = &mut take_in, if reading => reading = false,
            _ = &mut give_out => return,
        }
    }
}
