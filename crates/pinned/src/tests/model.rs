//! Random sequences against a model that knows only who holds what.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{address, copy, exhausted, pool, upload};
use crate::ledger::Purpose;
use crate::simulated::SimulatedStream;
use crate::size_class::{SMALLEST, size_class};
use crate::{FrozenBlock, PinnedBlock, PinnedError, PinnedPool, PinnedUploader};

/// 16 of the smallest blocks, half of them for uploads.
const CAP: usize = 16 * SMALLEST;
const LENT_CAP: usize = CAP / 2;

/// Indices are taken modulo how many there are.
#[derive(Clone, Copy, Debug)]
enum Op {
    Acquire { len: usize },
    Freeze(usize),
    Clone(usize),
    DropExclusive(usize),
    DropFrozen(usize),
    SendExclusive { index: usize, stream: usize },
    SendFrozen { index: usize, stream: usize },
    UploadFrozen { index: usize, stream: usize },
    UploadForeign { len: usize, stream: usize },
    Advance { stream: usize },
}

fn op() -> impl Strategy<Value = Op> {
    let (index, stream) = (0..8_usize, 0..2_usize);
    prop_oneof![
        4 => (1..5 * SMALLEST).prop_map(|len| Op::Acquire { len }),
        3 => index.clone().prop_map(Op::Freeze),
        1 => index.clone().prop_map(Op::Clone),
        1 => index.clone().prop_map(Op::DropExclusive),
        3 => index.clone().prop_map(Op::DropFrozen),
        2 => (index.clone(), stream.clone()).prop_map(|(index, stream)| Op::SendExclusive { index, stream }),
        2 => (index.clone(), stream.clone()).prop_map(|(index, stream)| Op::SendFrozen { index, stream }),
        1 => (index, stream.clone()).prop_map(|(index, stream)| Op::UploadFrozen { index, stream }),
        2 => (1..12 * SMALLEST, stream.clone()).prop_map(|(len, stream)| Op::UploadForeign { len, stream }),
        4 => stream.prop_map(|stream| Op::Advance { stream }),
    ]
}

/// The pool, and all that is held of it: each block filled with a number of its own.
struct Run {
    pool: PinnedPool,
    uploader: PinnedUploader,
    streams: [SimulatedStream; 2],
    exclusive: Vec<(PinnedBlock, u8)>,
    frozen: Vec<(FrozenBlock, u8)>,
    next: u8,
}

impl Run {
    fn new() -> Self {
        let pool = pool(CAP);
        Self {
            uploader: PinnedUploader::new(pool.clone()),
            pool,
            streams: Default::default(),
            exclusive: Vec::new(),
            frozen: Vec::new(),
            next: 0,
        }
    }

    /// Bytes of the blocks that somebody holds, clones counted once.
    fn held_bytes(&self) -> usize {
        let exclusive = self.exclusive.iter().map(|(block, _)| (address(block), block.len()));
        let frozen = self.frozen.iter().map(|(block, _)| (address(block), block.len()));
        let held: BTreeMap<usize, usize> = exclusive.chain(frozen).collect();
        held.values().filter_map(|len| size_class(*len)).sum()
    }

    fn acquire(&mut self, len: usize) {
        match self.pool.acquire(len) {
            Ok(mut block) => {
                let at = address(&block);
                let range = at..at + block.len();
                let reads = self.streams.iter().flat_map(SimulatedStream::reads);
                assert!(
                    reads.clone().all(|read| read.end <= range.start || range.end <= read.start),
                    "a copy reads it"
                );
                self.next = self.next.wrapping_add(1);
                block.fill(self.next);
                self.exclusive.push((block, self.next));
            }
            Err(error) => {
                let wanted = size_class(len).unwrap();
                assert!(self.held_bytes() + wanted > LENT_CAP, "{error}, of which {} are held", self.held_bytes());
                assert_eq!(exhausted(Err::<(), PinnedError>(error)).0, LENT_CAP);
            }
        }
    }

    fn step(&mut self, op: Op) {
        let (num_exclusive, num_frozen) = (self.exclusive.len(), self.frozen.len());
        let exclusive = |index: usize| (num_exclusive > 0).then(|| index % num_exclusive);
        let frozen = |index: usize| (num_frozen > 0).then(|| index % num_frozen);
        match op {
            Op::Acquire { len } => self.acquire(len),
            Op::Freeze(index) => exclusive(index).into_iter().for_each(|index| {
                let (block, fill) = self.exclusive.swap_remove(index);
                self.frozen.push((block.freeze(), fill));
            }),
            Op::Clone(index) => {
                frozen(index).into_iter().for_each(|index| self.frozen.push(self.frozen[index].clone()))
            }
            Op::DropExclusive(index) => drop(exclusive(index).map(|index| self.exclusive.swap_remove(index))),
            Op::DropFrozen(index) => drop(frozen(index).map(|index| self.frozen.swap_remove(index))),
            Op::SendExclusive { index, stream } => exclusive(index).into_iter().for_each(|index| {
                let (block, _) = self.exclusive.swap_remove(index);
                let len = block.len();
                copy(block.into_share(), len, &self.streams[stream]).unwrap();
            }),
            Op::SendFrozen { index, stream } => frozen(index).into_iter().for_each(|index| {
                let (block, _) = &self.frozen[index];
                copy(block.share(), block.len(), &self.streams[stream]).unwrap();
            }),
            Op::UploadFrozen { index, stream } => frozen(index).into_iter().for_each(|index| {
                let before = self.pool.stats().direct_copies;
                upload(&self.uploader, &self.frozen[index].0, &self.streams[stream]).unwrap();
                assert_eq!(self.pool.stats().direct_copies, before + 1);
            }),
            Op::UploadForeign { len, stream } => {
                let bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
                upload(&self.uploader, &bytes, &self.streams[stream]).unwrap();
            }
            Op::Advance { stream } => drop(self.streams[stream].advance()),
        }
    }

    fn check(&self) {
        for (block, fill) in &self.exclusive {
            assert!(block.iter().all(|byte| byte == fill), "an exclusive block was written by another");
        }
        for (block, fill) in &self.frozen {
            assert!(block.iter().all(|byte| byte == fill), "a frozen block was written");
        }
        let stats = self.pool.stats();
        assert!(stats.bytes_pinned <= CAP as u64 && stats.bytes_in_use <= stats.bytes_pinned, "{stats:?}");
        assert!(stats.bytes_in_use >= self.held_bytes() as u64, "{stats:?}");
    }

    /// With everything given back and all copies ended, nothing is in use, and all of the cap can be had.
    fn end(self) {
        for stream in &self.streams {
            while stream.advance() {}
        }
        drop((self.exclusive, self.frozen));
        self.pool.state().lock().reap_all().unwrap();
        assert_eq!(self.pool.stats().bytes_in_use, 0);
        for (purpose, cap) in [(Purpose::Lent, LENT_CAP), (Purpose::Staging, CAP - LENT_CAP)] {
            let all: Vec<_> = (0..cap / SMALLEST).map(|_| self.pool.acquire_for(1, purpose).unwrap()).collect();
            exhausted(self.pool.acquire_for(1, purpose));
            drop(all);
        }
        assert_eq!(self.pool.stats().bytes_in_use, 0);
    }
}

proptest! {
    #[test]
    fn no_block_is_given_twice_and_none_is_lost(ops in prop::collection::vec(op(), 1..120)) {
        let mut run = Run::new();
        for op in ops {
            run.step(op);
            run.check();
        }
        run.end();
    }
}
