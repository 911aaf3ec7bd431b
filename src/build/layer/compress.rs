//! Compression of a layer: pieces of the tar that are compressed each by itself, on several cores, and written one after the other.
//!
//! The pieces' boundaries depend on the tar alone, so neither the number of cores nor the sizes of writes reach the bytes. What a piece
//! becomes is [`gzip`](super::gzip)'s or [`zstd`](super::zstd)'s to say: a file of several gzip members is a gzip file (RFC 1952, section
//! 2.2), one of several zstd frames a zstd file (RFC 8878, section 3), and all engines that read one read several.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use jiji_model::image::Compression;

use super::{gzip, zstd};

/// Bytes of tar in a piece.
pub(super) const PIECE: usize = 1 << 20;

/// Room for a piece and for what it becomes, used for one piece after the other.
struct Room {
    piece: Vec<u8>,
    compressed: Vec<u8>,
}

impl Room {
    fn new() -> Self {
        Self { piece: Vec::with_capacity(PIECE), compressed: Vec::new() }
    }
}

type Job = (Room, Sender<Room>);

/// Compresses one piece after the other.
enum Compressor {
    Gzip(gzip::Compressor),
    Zstd,
}

impl Compressor {
    fn new(compression: Compression) -> Self {
        match compression {
            Compression::Gzip => Self::Gzip(gzip::compressor()),
            Compression::Zstd => Self::Zstd,
        }
    }

    fn compress(&mut self, Room { piece, compressed }: &mut Room) {
        match self {
            Self::Gzip(compressor) => gzip::member(compressor, piece, compressed),
            Self::Zstd => *compressed = zstd::frame(piece),
        }
    }
}

/// Compresses what is written to it into `out`.
pub(super) struct Compress<W> {
    out: W,
    compression: Compression,
    /// The piece that is being filled.
    room: Room,
    threads: usize,
    pool: Option<Pool>,
    /// Pieces under way, in order. Bounded by the pool's size, and so is memory: some MiB per core.
    pending: VecDeque<Receiver<Room>>,
    /// Rooms for pieces to come.
    free: Vec<Room>,
    single: Option<Compressor>,
}

struct Pool {
    jobs: SyncSender<Job>,
    workers: Vec<JoinHandle<()>>,
}

impl<W: Write> Compress<W> {
    /// Compresses on `threads` cores; on the caller's thread alone where that is 1.
    pub(super) fn new(out: W, compression: Compression, threads: usize) -> Self {
        let (room, pending, free) = (Room::new(), VecDeque::new(), Vec::new());
        Self { out, compression, room, threads, pool: None, pending, free, single: None }
    }

    /// Ends the last piece and gives `out` back.
    pub(super) fn finish(mut self) -> io::Result<W> {
        if !self.room.piece.is_empty() {
            // A layer below 1 MiB is most layers, and no thread is worth starting for it.
            if self.pool.is_none() {
                self.compress_here()?;
            } else {
                self.send()?;
            }
        }
        while !self.pending.is_empty() {
            self.write_oldest()?;
        }
        if let Some(Pool { jobs, workers }) = self.pool.take() {
            drop(jobs);
            for worker in workers {
                worker.join().map_err(|_| worker_died())?;
            }
        }
        Ok(self.out)
    }

    /// Has the piece compressed, and begins another.
    fn send(&mut self) -> io::Result<()> {
        if self.threads < 2 {
            return self.compress_here();
        }
        let (threads, compression) = (self.threads, self.compression);
        let pool = self.pool.get_or_insert_with(|| Pool::new(threads, compression));
        let (sender, receiver) = channel();
        let full = std::mem::replace(&mut self.room, self.free.pop().unwrap_or_else(Room::new));
        pool.jobs.send((full, sender)).map_err(|_| worker_died())?;
        self.pending.push_back(receiver);
        while self.pending.len() > self.threads + 1 {
            self.write_oldest()?;
        }
        Ok(())
    }

    fn compress_here(&mut self) -> io::Result<()> {
        let compression = self.compression;
        self.single.get_or_insert_with(|| Compressor::new(compression)).compress(&mut self.room);
        self.room.piece.clear();
        self.out.write_all(&self.room.compressed)
    }

    fn write_oldest(&mut self) -> io::Result<()> {
        let Some(oldest) = self.pending.pop_front() else { return Ok(()) };
        let mut room = oldest.recv().map_err(|_| worker_died())?;
        self.out.write_all(&room.compressed)?;
        room.piece.clear();
        self.free.push(room);
        Ok(())
    }
}

impl<W: Write> Write for Compress<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let take = bytes.len().min(PIECE - self.room.piece.len());
        self.room.piece.extend_from_slice(&bytes[..take]);
        if self.room.piece.len() == PIECE {
            self.send()?;
        }
        Ok(take)
    }

    fn flush(&mut self) -> io::Result<()> {
        // A piece is never ended early: its boundary would depend on who flushes.
        Ok(())
    }
}

impl Pool {
    fn new(threads: usize, compression: Compression) -> Self {
        let (jobs, queue) = sync_channel::<Job>(1);
        let queue = Arc::new(Mutex::new(queue));
        let work = move |queue: Arc<Mutex<Receiver<Job>>>| {
            let mut compressor = Compressor::new(compression);
            loop {
                let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok((mut room, answer)) = job else { return };
                compressor.compress(&mut room);
                // The receiver is gone when the layer was given up; then nobody wants the answer.
                let _ = answer.send(room);
            }
        };
        let workers = (0..threads).map(|_| {
            let queue = Arc::clone(&queue);
            std::thread::spawn(move || work(queue))
        });
        Self { workers: workers.collect(), jobs }
    }
}

fn worker_died() -> io::Error {
    io::Error::other("a compression thread ended early")
}
