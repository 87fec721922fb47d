//! Copies to a real device: the CPU everywhere, a GPU where there is one.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use foveal_device::{DType, Device, DeviceError, Tensor, allocation_count, counters};
use foveal_pinned::{PinnedError, PinnedPool, install};

const MIB: usize = 1 << 20;

/// The system's allocator, which counts what each thread asks for.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: the system's allocator does all the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|it| it.set(it.get() + 1));
        // SAFETY: the caller keeps to `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps to `dealloc`'s contract.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// Tests run one after another: some read counters of the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A GPU with a pool of its own behind its uploads; without one the test says so and is over. With `FOVEAL_REQUIRE_GPU`
/// set, a GPU that can't be used fails the test instead.
fn gpu(capacity_bytes: usize) -> Option<(Device, PinnedPool)> {
    static PROBED: OnceLock<Result<(), DeviceError>> = OnceLock::new();
    if let Err(error) = PROBED.get_or_init(|| Device::cuda(0).map(drop)) {
        assert!(std::env::var_os("FOVEAL_REQUIRE_GPU").is_none(), "{error}");
        println!("skipped: {error}");
        return None;
    }
    let device = Device::cuda(0).unwrap();
    let pool = install(&device, capacity_bytes);
    Some((device, pool))
}

fn cpu(capacity_bytes: usize) -> (Device, PinnedPool) {
    let device = Device::cpu(1).unwrap();
    let pool = install(&device, capacity_bytes);
    (device, pool)
}

/// `len` bytes that differ from those of another seed nearly everywhere.
fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut words = Vec::with_capacity(len.div_ceil(8));
    for _ in 0..len.div_ceil(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        words.push(state);
    }
    let mut bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
    bytes.truncate(len);
    bytes
}

fn bytes_arrive(device: &Device, pool: &PinnedPool) {
    for (seed, len) in
        [1, 3, 4095, 4096, 4097, 1_000_003, 8 * MIB, 8 * MIB + 1, 40 * MIB, 100_000_000].into_iter().enumerate()
    {
        let (source, mut to) = (bytes(seed as u64, len), Tensor::zeros(device, DType::U8, &[len]).unwrap());
        let host = source.clone();
        device.stream().write(&host, to.view_mut().unwrap()).unwrap();
        // They may be gone when `write` has returned.
        drop(host);
        assert!(to.to_vec::<u8>().unwrap() == source, "{len} bytes of the host");

        let mut block = pool.acquire(len).unwrap();
        block.iter_mut().zip(&source).for_each(|(to, from)| *to = !from);
        let (inverted, frozen) = (block.to_vec(), block.freeze());
        device.stream().write(&frozen, to.view_mut().unwrap()).unwrap();
        drop(frozen);
        assert!(to.to_vec::<u8>().unwrap() == inverted, "{len} bytes of a frozen block");

        let mut block = pool.acquire(len).unwrap();
        block.copy_from_slice(&source);
        block.copy_to(device.stream(), 0..len, to.view_mut().unwrap()).unwrap();
        assert!(to.to_vec::<u8>().unwrap() == source, "{len} bytes of an exclusive block");
    }
}

/// Many copies from few blocks, and none sees what was written for another.
fn blocks_are_reused_under_pressure(device: &Device, pool: &PinnedPool) {
    const ROUNDS: usize = 200;
    let len = MIB - 13;
    // Copied several times a round, so that a GPU falls behind and blocks are in flight when they are wanted.
    let busy = pool.acquire(2 * MIB).unwrap().freeze();
    let mut behind = Tensor::zeros(device, DType::U8, &[2 * MIB]).unwrap();
    let mut to: Vec<Tensor> = (0..ROUNDS).map(|_| Tensor::zeros(device, DType::U8, &[len]).unwrap()).collect();
    for (round, to) in to.iter_mut().enumerate() {
        let fill = (round + 1) as u8;
        let delays = if device.is_cuda() { 16 } else { 0 };
        for _ in 0..delays {
            busy.copy_to(device.stream(), 0..2 * MIB, behind.view_mut().unwrap()).unwrap();
        }
        match round % 3 {
            0 => {
                let mut block = pool.acquire(len).unwrap();
                block.fill(fill);
                block.copy_to(device.stream(), 0..len, to.view_mut().unwrap()).unwrap();
            }
            1 => {
                let mut block = pool.acquire(len).unwrap();
                block.fill(fill);
                let frozen = block.freeze();
                frozen.copy_to(device.stream(), 0..5, to.rows_mut(0..5).unwrap()).unwrap();
                device.stream().write(&frozen[5..], to.rows_mut(5..len).unwrap()).unwrap();
            }
            _ => device.stream().write(&vec![fill; len], to.view_mut().unwrap()).unwrap(),
        }
    }
    for (round, to) in to.iter().enumerate() {
        assert!(to.to_vec::<u8>().unwrap().iter().all(|byte| *byte == (round + 1) as u8), "round {round}");
    }
    let stats = pool.stats();
    assert!(stats.bytes_pinned <= pool.capacity_bytes() as u64 && stats.reused > 100, "{stats:?}");
}

/// Copies that are under way at once before a steady step is counted.
const COPIES_AHEAD: usize = 16;

/// A step's copies, once their blocks are there.
fn a_steady_step_allocates_nothing(device: &Device, pool: &PinnedPool) {
    let source = bytes(1, 10_000);
    let mut to = Tensor::zeros(device, DType::U8, &[10_000]).unwrap();
    let mut step = || {
        device.stream().write(&source, to.view_mut().unwrap()).unwrap();
        let mut block = pool.acquire(2000).unwrap();
        block.fill(1);
        block.copy_to(device.stream(), 0..2000, to.rows_mut(0..2000).unwrap()).unwrap();
        let frozen = pool.acquire(3000).unwrap().freeze();
        frozen.clone().copy_to(device.stream(), 0..3000, to.rows_mut(0..3000).unwrap()).unwrap();
        device.stream().write(&frozen[10..20], to.rows_mut(0..10).unwrap()).unwrap();
        device.stream().synchronize().unwrap();
    };
    // More copies in flight than a step ever has, so that the blocks and events for them are there, whether or not a step
    // finds the copies before it ended.
    let mut scratch = [(); COPIES_AHEAD].map(|()| Tensor::zeros(device, DType::U8, &[3000]).unwrap());
    let blocks = [(); COPIES_AHEAD].map(|()| pool.acquire(3000).unwrap());
    for (block, to) in blocks.into_iter().zip(&mut scratch) {
        block.copy_to(device.stream(), 0..3000, to.view_mut().unwrap()).unwrap();
    }
    device.stream().synchronize().unwrap();
    (0..4).for_each(|_| step());
    let before = (ALLOCATIONS.get(), pool.stats().blocks);
    (0..100).for_each(|_| step());
    assert_eq!((ALLOCATIONS.get(), pool.stats().blocks), before);
}

#[test]
fn bytes_arrive_on_the_cpu() {
    let _alone = alone();
    let (device, pool) = cpu(256 * MIB);
    bytes_arrive(&device, &pool);
}

#[test]
fn blocks_are_reused_under_pressure_on_the_cpu() {
    let _alone = alone();
    let (device, pool) = cpu(4 * MIB);
    blocks_are_reused_under_pressure(&device, &pool);
}

#[test]
fn a_steady_step_allocates_nothing_on_the_cpu() {
    let _alone = alone();
    let (device, pool) = cpu(4 * MIB);
    a_steady_step_allocates_nothing(&device, &pool);
}

#[test]
fn a_gpu_gets_its_bytes_from_page_locked_memory_alone() {
    let _alone = alone();
    let Some((device, pool)) = gpu(256 * MIB) else { return };
    bytes_arrive(&device, &pool);
    let stats = pool.stats();
    assert_eq!(stats.direct_copies, 10);
    assert!(stats.copies > 30 && stats.bytes_pinned <= 256 << 20, "{stats:?}");

    let (device, small) = gpu(8 * MIB).unwrap();
    blocks_are_reused_under_pressure(&device, &small);
    assert!(small.stats().waits > 0, "{:?}", small.stats());

    let (device, small) = gpu(4 * MIB).unwrap();
    a_steady_step_allocates_nothing(&device, &small);
    let before = allocation_count();
    a_steady_step_allocates_nothing(&device, &small);
    // The test's own tensors.
    assert_eq!(allocation_count(), before + 1 + COPIES_AHEAD as u64);
    assert_eq!(counters().pageable_copies, 0);
}

#[test]
fn a_pool_of_the_host_serves_no_gpu() {
    let _alone = alone();
    let Some((device, _)) = gpu(MIB) else { return };
    let (_, pool) = cpu(MIB);
    let mut to = Tensor::zeros(&device, DType::U8, &[4]).unwrap();
    let refused = pool.acquire(4).unwrap().copy_to(device.stream(), 0..4, to.view_mut().unwrap());
    assert!(matches!(refused, Err(PinnedError::WrongDevice { .. })));
    assert_eq!(pool.stats().bytes_in_use, 0);
}

#[test]
fn a_pool_of_a_gpu_serves_the_host() {
    let _alone = alone();
    let Some((_, pool)) = gpu(MIB) else { return };
    let (device, _) = cpu(MIB);
    let mut to = Tensor::zeros(&device, DType::U8, &[4]).unwrap();
    let mut block = pool.acquire(4).unwrap();
    block.copy_from_slice(b"abcd");
    block.copy_to(device.stream(), 0..4, to.view_mut().unwrap()).unwrap();
    assert_eq!(to.to_vec::<u8>().unwrap(), b"abcd");
    assert_eq!(pool.stats().bytes_in_use, 0);
}
