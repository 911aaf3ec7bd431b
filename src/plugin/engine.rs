//! WebAssembly's runtime with everything off that a pure function does not need, and the limits of one call.
//!
//! Deterministic: the same bytes with the same input give the same answer or stop at the same instruction, on every machine. Fuel counts
//! instructions; the epoch is a backstop by the clock for what fuel does not count. Memory that cannot be had ends the call instead of
//! being told to the guest, which could not act on it the same way everywhere.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{
    Config, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig, ResourceLimiter, Store, Trap,
};

use super::PluginError;
use super::bindings::{health, mesh, proxy, types};
use super::text::sentence;

/// Instructions of one call. An honest answer to a full MiB of facts takes a few tens of millions.
const FUEL: u64 = 1_000_000_000;
/// Linear memory of one call in MiB.
const MEMORY_MIB: usize = 64;
/// Bytes of a call's memory that are wiped and kept for the next one instead of being given back. An answer about fifty services takes
/// less.
const KEPT: usize = 4 * 1024 * 1024;
/// The same of a table.
const KEPT_OF_TABLE: usize = 64 * 1024;
/// Most core instances, memories and tables of one call.
const INSTANCES: u32 = 32;
const MEMORIES: u32 = 4;
const TABLES: u32 = 16;
/// Most elements of a table.
const TABLE: usize = 100_000;
/// Bytes that a guest may hand out in one call, in whole (`Store::set_hostcall_fuel`).
const HANDED_OUT: usize = 16 * 1024 * 1024;
/// The clock ticks this often while calls run, and a call may see this many ticks.
const TICK: Duration = Duration::from_millis(500);
const TICKS: u64 = 20;
/// So many hosts may be asked about in one call within the limits of one that is about a single host.
const HOSTS_OF_ONE: usize = 64;
/// Most lines that one call may log.
const LINES: usize = 64;

/// The runtime. Compiled plugins belong to the one that compiled them.
pub(super) struct Runtime {
    engine: Engine,
    proxy: Linker<Call>,
    health: Linker<Call>,
    mesh: Linker<Call>,
    calls: AtomicU64,
    // Dropped with the runtime, which ends the clock's thread.
    _clock: mpsc::Sender<()>,
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime").finish_non_exhaustive()
    }
}

fn setup(error: wasmtime::Error) -> PluginError {
    PluginError::Runtime { reason: error.to_string() }
}

impl Runtime {
    pub(super) fn new() -> Result<Self, PluginError> {
        let mut config = Config::new();
        config
            // A plugin runs for microseconds and is compiled for milliseconds.
            .cranelift_opt_level(OptLevel::None)
            .consume_fuel(true)
            .epoch_interruption(true)
            .cranelift_nan_canonicalization(true)
            .wasm_relaxed_simd(true)
            .relaxed_simd_deterministic(true)
            .max_wasm_stack(512 * 1024)
            // Bounds are checked by the code itself and not by pages that nobody may touch: to move such pages at every growth of a memory,
            // in a process with several threads, costs more than the checks. No handler of signals is needed then either, and no address
            // space but that of the memories.
            .signals_based_traps(false)
            .memory_reservation((MEMORY_MIB << 20) as u64)
            .memory_reservation_for_growth(0)
            .memory_guard_size(0);
        let mut pooling = config.clone();
        pooling.allocation_strategy(InstanceAllocationStrategy::Pooling(pool()));
        // The pool reserves addresses for all calls that can be made at once. Where a process may not have so many, each call asks the
        // kernel for its own, which takes longer and gives the same answers.
        let engine = Engine::new(&pooling).or_else(|_| Engine::new(&config)).map_err(setup)?;
        let mut proxy = Linker::new(&engine);
        proxy::Plugin::add_to_linker::<_, HasSelf<_>>(&mut proxy, |call: &mut Call| call).map_err(setup)?;
        let mut health = Linker::new(&engine);
        health::Plugin::add_to_linker::<_, HasSelf<_>>(&mut health, |call: &mut Call| call).map_err(setup)?;
        let mut mesh = Linker::new(&engine);
        mesh::Plugin::add_to_linker::<_, HasSelf<_>>(&mut mesh, |call: &mut Call| call).map_err(setup)?;
        let clock = clock(&engine)?;
        Ok(Self { engine, proxy, health, mesh, calls: AtomicU64::new(0), _clock: clock })
    }

    /// How many calls were made.
    pub(super) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Ties a component to the proxy's world.
    pub(super) fn proxy(&self, component: &Component) -> wasmtime::Result<proxy::PluginPre<Call>> {
        proxy::PluginPre::new(self.proxy.instantiate_pre(component)?)
    }

    /// Ties a component to the health judge's world.
    pub(super) fn health(&self, component: &Component) -> wasmtime::Result<health::PluginPre<Call>> {
        health::PluginPre::new(self.health.instantiate_pre(component)?)
    }

    /// Ties a component to the mesh's world.
    pub(super) fn mesh(&self, component: &Component) -> wasmtime::Result<mesh::PluginPre<Call>> {
        mesh::PluginPre::new(self.mesh.instantiate_pre(component)?)
    }

    /// Runs one call in a store of its own.
    pub(super) fn call<T>(
        &self,
        plugin: &str,
        call: &'static str,
        run: impl FnOnce(&mut Store<Call>) -> wasmtime::Result<T>,
    ) -> Result<T, PluginError> {
        self.call_for(plugin, call, 1, run)
    }

    /// The same for a call that is about so many hosts at once: it may take longer and say more. Its memory is bounded as every call's.
    pub(super) fn call_for<T>(
        &self,
        plugin: &str,
        call: &'static str,
        hosts: usize,
        run: impl FnOnce(&mut Store<Call>) -> wasmtime::Result<T>,
    ) -> Result<T, PluginError> {
        let scale = hosts.div_ceil(HOSTS_OF_ONE).max(1);
        let times = u64::try_from(scale).unwrap_or(u64::MAX);
        self.calls.fetch_add(1, Ordering::Relaxed);
        let state = Call { plugin: plugin.to_owned(), lines: 0 };
        let mut store = Store::new(&self.engine, state);
        store.limiter(|call| call);
        store.set_fuel(FUEL.saturating_mul(times)).map_err(setup)?;
        store.set_epoch_deadline(TICKS.saturating_mul(times));
        store.epoch_deadline_trap();
        store.set_hostcall_fuel(HANDED_OUT.saturating_mul(scale));
        run(&mut store).map_err(|error| stopped(plugin, call, &error))
    }
}

/// Most calls at once. Planning makes them from as many threads as there are processors, and nothing else makes any meanwhile: twice as many
/// leave room.
fn concurrent_calls() -> u32 {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    u32::try_from(threads).unwrap_or(u32::MAX).saturating_mul(2).max(16)
}

/// Memories for calls, used again and again: a plan for a thousand hosts makes thousands of calls, and to give memory back to the kernel
/// after each costs more than most calls do. What a call left is wiped before the next one sees it.
fn pool() -> PoolingAllocationConfig {
    let calls = concurrent_calls();
    let mut pool = PoolingAllocationConfig::new();
    // Whatever one call may have, each of them can have at once.
    pool.total_component_instances(calls)
        .total_core_instances(calls.saturating_mul(INSTANCES))
        .total_memories(calls.saturating_mul(MEMORIES))
        .total_tables(calls.saturating_mul(TABLES))
        .max_memories_per_module(MEMORIES)
        .max_tables_per_module(TABLES)
        .max_memory_size(MEMORY_MIB << 20)
        .table_elements(TABLE)
        .linear_memory_keep_resident(KEPT)
        .table_keep_resident(KEPT_OF_TABLE);
    pool
}

/// A thread that moves the epoch on, for as long as what it returns is kept.
fn clock(engine: &Engine) -> Result<mpsc::Sender<()>, PluginError> {
    let (keep, gone) = mpsc::channel::<()>();
    let engine = engine.weak();
    thread::Builder::new()
        .name("plugin clock".to_owned())
        .spawn(move || {
            while gone.recv_timeout(TICK) == Err(mpsc::RecvTimeoutError::Timeout) {
                match engine.upgrade() {
                    Some(engine) => engine.increment_epoch(),
                    None => return,
                }
            }
        })
        .map_err(|error| PluginError::Runtime { reason: error.to_string() })?;
    Ok(keep)
}

/// Names the reason why a call ended early.
fn stopped(plugin: &str, call: &'static str, error: &wasmtime::Error) -> PluginError {
    let plugin = plugin.to_owned();
    if error.downcast_ref::<LimitReached>().is_some() {
        return PluginError::OutOfMemory { plugin, call, limit: MEMORY_MIB };
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => PluginError::OutOfFuel { plugin, call },
        Some(Trap::Interrupt) => PluginError::OutOfTime { plugin, call },
        _ => PluginError::Trap {
            plugin,
            call,
            // The last cause says what happened, the ones around it where in the guest's code.
            reason: sentence(&error.root_cause().to_string()),
        },
    }
}

/// The state of one call.
pub(super) struct Call {
    plugin: String,
    lines: usize,
}

#[derive(Debug, thiserror::Error)]
#[error("more memory than a plugin gets")]
struct LimitReached;

impl ResourceLimiter for Call {
    fn memory_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        if desired > MEMORY_MIB << 20 {
            return Err(LimitReached.into());
        }
        Ok(true)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        Err(error)
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        if desired > TABLE {
            return Err(LimitReached.into());
        }
        Ok(true)
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        Err(error)
    }

    fn instances(&self) -> usize {
        INSTANCES as usize
    }

    fn memories(&self) -> usize {
        MEMORIES as usize
    }

    fn tables(&self) -> usize {
        TABLES as usize
    }
}

impl types::Host for Call {}

impl proxy::jiji::plan::log::Host for Call {
    fn emit(&mut self, level: proxy::jiji::plan::log::Level, message: String) {
        use proxy::jiji::plan::log::Level;
        self.lines += 1;
        if self.lines > LINES {
            return;
        }
        let (plugin, message) = (&self.plugin, sentence(&message));
        match level {
            Level::Debug => tracing::debug!(%plugin, "{message}"),
            Level::Info => tracing::info!(%plugin, "{message}"),
            Level::Warn => tracing::warn!(%plugin, "{message}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_that_can_be_made_at_once_may_have_all_that_one_may_have() {
        let memories = "(memory 1)".repeat(MEMORIES as usize);
        let tables = "(table 1 funcref)".repeat(TABLES as usize);
        let text = format!("(component (core module $all {memories} {tables}) (core instance (instantiate $all)))");
        let runtime = Runtime::new().expect("a runtime");
        let component = Component::new(&runtime.engine, wat::parse_str(text).expect("a component")).expect("compiled");
        let nothing = Linker::<Call>::new(&runtime.engine);
        let calls: Vec<_> = (0..concurrent_calls())
            .map(|number| {
                let mut store = Store::new(&runtime.engine, Call { plugin: "greedy".to_owned(), lines: 0 });
                store.limiter(|call| call);
                store.set_fuel(FUEL).expect("fuel is on");
                store.set_epoch_deadline(TICKS);
                nothing.instantiate(&mut store, &component).unwrap_or_else(|error| panic!("call {number}: {error:#}"));
                store
            })
            .collect();
        assert!(calls.len() >= 16);
    }
}
