//! What a pool promises, on heap memory and streams whose copies end when the test says so.

mod model;

use foveal_device::{DType, Device, DeviceError, Tensor};

use crate::lane::Lane;
use crate::simulated::SimulatedStream;
use crate::transfer::{BlockShare, transfer};
use crate::{FrozenBlock, PinnedBlock, PinnedError, PinnedPool, PinnedUploader};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

fn cpu() -> Device {
    Device::cpu(1).unwrap()
}

fn pool(capacity_bytes: usize) -> PinnedPool {
    PinnedPool::with_capacity_bytes(&cpu(), capacity_bytes)
}

/// Copies the whole of `share`'s first `len` bytes to a tensor that is thrown away.
fn copy(share: BlockShare, len: usize, stream: &SimulatedStream) -> Result<(), PinnedError> {
    let mut to = vec![0_u8; len];
    let to = foveal_device::ViewMut::from_slice(&mut to, &[len]).unwrap();
    transfer(share, 0..len, Lane::Simulated(stream), to, false)
}

fn send(block: PinnedBlock, stream: &SimulatedStream) {
    let len = block.len();
    copy(block.into_share(), len, stream).unwrap();
}

fn upload(uploader: &PinnedUploader, bytes: &[u8], stream: &SimulatedStream) -> Result<(), PinnedError> {
    let mut to = Tensor::zeros(&cpu(), DType::U8, &[bytes.len()]).unwrap();
    uploader.send(bytes, to.view_mut().unwrap(), |_| Ok(Lane::Simulated(stream)))?;
    assert_eq!(to.to_vec::<u8>().unwrap(), bytes);
    Ok(())
}

fn address(bytes: &[u8]) -> usize {
    bytes.as_ptr().addr()
}

fn exhausted<T>(result: Result<T, PinnedError>) -> (usize, usize, usize) {
    match result.map(|_| ()) {
        Err(PinnedError::Exhausted { cap_bytes, in_use_bytes, wanted_bytes }) => {
            (cap_bytes, in_use_bytes, wanted_bytes)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_dropped_block_is_used_again() {
    let pool = pool(MIB);
    let first = pool.acquire(5000).unwrap();
    assert_eq!(first.len(), 5000);
    let at = address(&first);
    assert_eq!(at % 64, 0);
    drop(first);
    let again = pool.acquire(8 * KIB).unwrap();
    assert_eq!(address(&again), at);
    let stats = pool.stats();
    assert_eq!((stats.blocks, stats.bytes_pinned, stats.bytes_in_use, stats.reused), (1, 8192, 8192, 1));
}

#[test]
fn a_frozen_block_comes_back_after_its_last_clone() {
    let pool = pool(4 * KIB);
    let mut block = pool.acquire(3).unwrap();
    block.copy_from_slice(b"abc");
    let frozen = block.freeze();
    let clone = frozen.clone();
    let shared = frozen.clone().into_shared();
    drop(frozen);
    assert_eq!(*clone, *b"abc");
    drop(clone);
    assert_eq!(exhausted(pool.acquire(1)), (4096, 4096, 1));
    let tensor = Tensor::from_shared(shared, 0..3, DType::U8, &[3]).unwrap();
    assert_eq!(tensor.to_vec::<u8>().unwrap(), b"abc");
    drop(tensor);
    pool.acquire(1).unwrap();
}

#[test]
fn a_block_in_flight_is_nobodys() {
    let (pool, stream) = (pool(8 * KIB), SimulatedStream::default());
    let block = pool.acquire(4 * KIB).unwrap();
    let in_flight = address(&block);
    send(block, &stream);
    let other = pool.acquire(4 * KIB).unwrap();
    assert_ne!(address(&other), in_flight);
    while stream.advance() {}
    let landed = pool.acquire(4 * KIB).unwrap();
    assert_eq!(address(&landed), in_flight);
    assert_eq!(pool.stats().waits, 0);
}

#[test]
fn at_the_cap_the_oldest_copy_is_waited_for() {
    let (pool, stream) = (pool(8 * KIB), SimulatedStream::default());
    let blocks = [pool.acquire(4 * KIB).unwrap(), pool.acquire(4 * KIB).unwrap()];
    let addresses = [address(&blocks[0]), address(&blocks[1])];
    blocks.into_iter().for_each(|block| send(block, &stream));
    let block = pool.acquire(1).unwrap();
    assert_eq!(address(&block), addresses[0]);
    assert_eq!(stream.reads().len(), 1, "the younger copy was waited for too");
    assert_eq!(pool.stats().waits, 1);
}

#[test]
fn copies_that_end_behind_a_slow_one_are_seen() {
    let pool = pool(8 * KIB);
    let (slow, quick) = (SimulatedStream::default(), SimulatedStream::default());
    let (first, second) = (pool.acquire(1).unwrap(), pool.acquire(1).unwrap());
    let at = address(&second);
    send(first, &slow);
    send(second, &quick);
    while quick.advance() {}
    assert_eq!(address(&pool.acquire(1).unwrap()), at);
    assert_eq!(pool.stats().waits, 0);
}

#[test]
fn idle_blocks_of_other_sizes_make_room() {
    let pool = pool(16 * KIB);
    drop([pool.acquire(4 * KIB).unwrap(), pool.acquire(8 * KIB).unwrap()]);
    let _large = pool.acquire(12 * KIB).unwrap();
    let stats = pool.stats();
    assert_eq!((stats.blocks, stats.bytes_pinned), (1, 16 << 10));
    assert_eq!(exhausted(pool.acquire(17 * KIB)), (16 << 10, 16 << 10, 17 << 10));
    assert_eq!(exhausted(pool.acquire(usize::MAX)).2, usize::MAX);
}

#[test]
fn a_copy_of_a_block_that_is_held_is_not_waited_for() {
    let (pool, stream) = (pool(4 * KIB), SimulatedStream::default());
    let frozen = pool.acquire(1).unwrap().freeze();
    copy(frozen.share(), 1, &stream).unwrap();
    exhausted(pool.acquire(1));
    assert_eq!((pool.stats().waits, stream.reads().len()), (0, 1));
    drop(frozen);
    pool.acquire(1).unwrap();
    assert_eq!((pool.stats().waits, stream.reads().len()), (1, 0));
}

#[test]
fn a_frozen_block_goes_out_without_staging_and_is_kept() {
    let (pool, stream) = (pool(64 * KIB), SimulatedStream::default());
    let uploader = PinnedUploader::new(pool.clone());
    let mut block = pool.acquire(6000).unwrap();
    block.iter_mut().enumerate().for_each(|(i, byte)| *byte = i as u8);
    let (at, frozen) = (address(&block), block.freeze());
    upload(&uploader, &frozen[100..5000], &stream).unwrap();
    assert_eq!(stream.reads(), vec![at + 100..at + 5000]);
    assert_eq!(pool.stats().direct_copies, 1);
    drop(frozen);
    assert_ne!(address(&pool.acquire(6000).unwrap()), at, "a copy still reads it");
    while stream.advance() {}

    // An exclusive block may be written again at once, so its bytes are staged, as foreign ones are.
    let block = pool.acquire(6000).unwrap();
    upload(&uploader, &block, &stream).unwrap();
    assert!(!stream.reads().iter().any(|range| range.contains(&address(&block))));
    assert_eq!((pool.stats().direct_copies, pool.stats().copies), (1, 2));
}

#[test]
fn uploads_go_on_while_callers_hold_all_they_can() {
    let (pool, stream) = (pool(256 * KIB), SimulatedStream::default());
    let uploader = PinnedUploader::new(pool.clone());
    let held: Vec<FrozenBlock> = std::iter::from_fn(|| pool.acquire(KIB).ok().map(PinnedBlock::freeze)).collect();
    assert_eq!(held.len(), 32, "half of the pool is for uploads");
    let bytes: Vec<u8> = (0..900 * KIB).map(|i| (i / 7) as u8).collect();
    for len in [1, 4096, 4097, 32 * KIB, 900 * KIB] {
        upload(&uploader, &bytes[..len], &stream).unwrap();
    }
    let stats = pool.stats();
    assert!(stats.waits > 0 && stats.bytes_pinned <= 256 << 10, "{stats:?}");
    assert!(stream.reads().len() >= 3, "a large upload keeps several pieces under way");
}

#[test]
fn many_small_uploads_wait_rather_than_lock_ever_more_pages() {
    let (pool, stream) = (pool(64 * MIB), SimulatedStream::default());
    let uploader = PinnedUploader::new(pool.clone());
    for _ in 0..1000 {
        upload(&uploader, &[7; 100], &stream).unwrap();
    }
    assert_eq!(pool.stats().blocks, 64);
    assert_eq!(pool.stats().copies, 1000);
}

#[test]
fn elements_of_every_type_are_cut_where_they_end() {
    let (pool, stream) = (pool(64 * KIB), SimulatedStream::default());
    let uploader = PinnedUploader::new(pool);
    let values: Vec<i64> = (0..5000).collect();
    let mut to = Tensor::zeros(&cpu(), DType::I64, &[50, 100]).unwrap();
    uploader.send(bytemuck::cast_slice(&values), to.view_mut().unwrap(), |_| Ok(Lane::Simulated(&stream))).unwrap();
    assert_eq!(to.to_vec::<i64>().unwrap(), values);
    let misfit = uploader.send(&[0; 8], to.view_mut().unwrap(), |_| Ok(Lane::Simulated(&stream)));
    assert!(matches!(misfit, Err(PinnedError::Device(DeviceError::SizeMismatch { expected: 40_000, got: 8, .. }))));
}

#[test]
fn wrong_ranges_are_refused_and_the_block_comes_back() {
    let (pool, device) = (pool(4 * KIB), cpu());
    let mut to = Tensor::zeros(&device, DType::U8, &[4]).unwrap();
    let block = pool.acquire(10).unwrap();
    let refused = block.copy_to(device.stream(), 8..12, to.view_mut().unwrap());
    assert_eq!(refused, Err(PinnedError::OutOfRange { start: 8, end: 12, len_bytes: 10 }));
    let frozen = pool.acquire(10).unwrap().freeze();
    let misfit = frozen.copy_to(device.stream(), 0..5, to.view_mut().unwrap());
    assert!(matches!(misfit, Err(PinnedError::Device(DeviceError::SizeMismatch { expected: 4, got: 5, .. }))));
    frozen.copy_to(device.stream(), 6..10, to.view_mut().unwrap()).unwrap();
    assert_eq!(pool.stats().bytes_copied, 4);
    drop(frozen);
    pool.acquire(10).unwrap().copy_to(device.stream(), 0..0, to.rows_mut(0..0).unwrap()).unwrap();
    assert_eq!((pool.stats().bytes_in_use, pool.stats().copies), (0, 1));
}

#[test]
fn what_a_broken_device_may_read_is_never_used_again() {
    let (pool, stream) = (pool(8 * KIB), SimulatedStream::default());
    let block = pool.acquire(1).unwrap();
    stream.break_down();
    let failed = copy(block.into_share(), 1, &stream);
    assert!(matches!(failed, Err(PinnedError::Device(DeviceError::Driver { .. }))));
    assert_eq!(pool.stats().bytes_in_use, 4096);
    let _second = pool.acquire(1).unwrap();
    exhausted(pool.acquire(1));
}

#[test]
fn a_pool_waits_for_its_copies_before_it_goes() {
    let (pool, stream) = (pool(64 * KIB), SimulatedStream::default());
    for _ in 0..3 {
        send(pool.acquire(100).unwrap(), &stream);
    }
    let frozen = pool.acquire(1).unwrap().freeze();
    drop(pool);
    assert_eq!(stream.reads().len(), 3, "a block keeps its pool");
    drop(frozen);
    assert!(stream.reads().is_empty());
}
