//! Compression of layer format 1: gzip in members that each hold 1 MiB of the tar, compressed on several cores.
//!
//! The members' boundaries depend on the tar alone, so neither the number of cores nor the sizes of writes reach the bytes. A file of
//! several members is a gzip file (RFC 1952, section 2.2), which all engines read. libdeflate gives other bytes in other versions, so
//! its exact version is part of the format and pinned in Cargo.toml.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use libdeflater::{CompressionLvl, Compressor};

/// Bytes of tar in a member.
pub(super) const MEMBER: usize = 1 << 20;
/// libdeflate's level 6: better than zlib's 6 and faster.
const LEVEL: i32 = 6;

type Job = (Vec<u8>, Sender<Vec<u8>>);

/// Compresses what is written to it into `out`.
pub(super) struct Gzip<W> {
    out: W,
    block: Vec<u8>,
    threads: usize,
    pool: Option<Pool>,
    /// Members under way, in order. Bounded by the pool's size, and so is memory: some MiB per core.
    pending: VecDeque<Receiver<Vec<u8>>>,
    single: Option<Compressor>,
}

struct Pool {
    jobs: SyncSender<Job>,
    workers: Vec<JoinHandle<()>>,
}

impl<W: Write> Gzip<W> {
    /// Compresses on `threads` cores; on the caller's thread alone where that is 1.
    pub(super) fn new(out: W, threads: usize) -> Self {
        Self { out, block: Vec::with_capacity(MEMBER), threads, pool: None, pending: VecDeque::new(), single: None }
    }

    /// Ends the last member and gives `out` back.
    pub(super) fn finish(mut self) -> io::Result<W> {
        let last = std::mem::take(&mut self.block);
        if !last.is_empty() {
            // A layer below 1 MiB is most layers, and no thread is worth starting for it.
            if self.pool.is_none() {
                self.compress_here(&last)?;
            } else {
                self.send(last)?;
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

    fn send(&mut self, block: Vec<u8>) -> io::Result<()> {
        if self.threads < 2 {
            return self.compress_here(&block);
        }
        let threads = self.threads;
        let pool = self.pool.get_or_insert_with(|| Pool::new(threads));
        let (sender, receiver) = channel();
        pool.jobs.send((block, sender)).map_err(|_| worker_died())?;
        self.pending.push_back(receiver);
        while self.pending.len() > self.threads + 1 {
            self.write_oldest()?;
        }
        Ok(())
    }

    fn compress_here(&mut self, block: &[u8]) -> io::Result<()> {
        let member = compress(self.single.get_or_insert_with(compressor), block);
        self.out.write_all(&member)
    }

    fn write_oldest(&mut self) -> io::Result<()> {
        match self.pending.pop_front() {
            Some(member) => {
                let member = member.recv().map_err(|_| worker_died())?;
                self.out.write_all(&member)
            }
            None => Ok(()),
        }
    }
}

impl<W: Write> Write for Gzip<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let take = bytes.len().min(MEMBER - self.block.len());
        self.block.extend_from_slice(&bytes[..take]);
        if self.block.len() == MEMBER {
            let full = std::mem::replace(&mut self.block, Vec::with_capacity(MEMBER));
            self.send(full)?;
        }
        Ok(take)
    }

    fn flush(&mut self) -> io::Result<()> {
        // A member is never ended early: its boundary would depend on who flushes.
        Ok(())
    }
}

impl Pool {
    fn new(threads: usize) -> Self {
        let (jobs, queue) = sync_channel::<Job>(1);
        let queue = Arc::new(Mutex::new(queue));
        let work = |queue: Arc<Mutex<Receiver<Job>>>| {
            let mut compressor = compressor();
            loop {
                let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok((block, answer)) = job else { return };
                // The receiver is gone when the layer was given up; then nobody wants the answer.
                let _ = answer.send(compress(&mut compressor, &block));
            }
        };
        let workers = (0..threads).map(|_| {
            let queue = Arc::clone(&queue);
            std::thread::spawn(move || work(queue))
        });
        Self { workers: workers.collect(), jobs }
    }
}

fn compressor() -> Compressor {
    Compressor::new(CompressionLvl::new(LEVEL).expect("6 is one of libdeflate's levels"))
}

fn compress(compressor: &mut Compressor, block: &[u8]) -> Vec<u8> {
    let mut member = vec![0; compressor.gzip_compress_bound(block.len())];
    // libdeflate writes the header with no time, no name and an unknown system (MTIME=0, OS=255).
    let length = compressor.gzip_compress(block, &mut member).expect("the buffer is as long as libdeflate's bound");
    member.truncate(length);
    member
}

fn worker_died() -> io::Error {
    io::Error::other("a compression thread ended early")
}
