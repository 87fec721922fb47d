//! Every interleaving of a few threads over the life of a block: the pool's own source, compiled over loom's locks and
//! counts. What a GPU does is a thread that reads memory and then says that it is done.
#![allow(unsafe_code)]

#[path = "../src/ledger.rs"]
#[allow(dead_code)]
mod ledger;
#[path = "../src/lifecycle.rs"]
#[allow(dead_code)]
mod lifecycle;

mod sync {
    pub(crate) use loom::sync::{Arc, Mutex, MutexGuard};
}

use std::convert::Infallible;

use loom::cell::UnsafeCell;
use loom::sync::Condvar;
use loom::thread;

use ledger::{Fence, Memory, Purpose};
use lifecycle::{Exclusive, Refusal, Shared};
use sync::{Arc, Mutex};

const BLOCK: usize = 4096;

/// A block's memory: loom reports a read and a write of it that aren't ordered.
struct Cell {
    address: usize,
    value: UnsafeCell<u32>,
}

// SAFETY: the cell is only a witness: whether it is used from several threads at once is what the tests ask.
unsafe impl Send for Cell {}
// SAFETY: as above.
unsafe impl Sync for Cell {}

impl Cell {
    fn write(&mut self, value: u32) {
        // SAFETY: loom checks that nobody else is at it.
        self.value.with_mut(|it| unsafe { *it = value });
    }

    fn read(&self) -> u32 {
        // SAFETY: loom checks that nobody writes it.
        self.value.with(|it| unsafe { *it })
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        // What is freed is as if written: nobody may be reading it.
        self.write(u32::MAX);
    }
}

impl Memory for Cell {
    fn address(&self) -> usize {
        self.address
    }

    fn len_bytes(&self) -> usize {
        BLOCK
    }
}

/// Waiting blocks the thread: a loop would have endless interleavings.
struct Flag(Arc<(Mutex<bool>, Condvar)>);

impl Fence for Flag {
    type Error = Infallible;

    fn is_done(&self) -> Result<bool, Infallible> {
        Ok(*self.0.0.lock().unwrap())
    }

    fn wait(&self) -> Result<(), Infallible> {
        let mut is_done = self.0.0.lock().unwrap();
        while !*is_done {
            is_done = self.0.1.wait(is_done).unwrap();
        }
        Ok(())
    }
}

type Pool = Shared<Cell, Flag>;

fn acquire(pool: &Pool) -> Option<Exclusive<Cell, Flag>> {
    let pin = || Ok::<_, Infallible>(Cell { address: BLOCK, value: UnsafeCell::new(0) });
    match pool.acquire(BLOCK, Purpose::Lent, pin) {
        Ok(block) => Some(block),
        Err(Refusal::Exhausted { .. }) => None,
        Err(Refusal::Failed(never)) => match never {},
    }
}

fn written(pool: &Pool, value: u32) -> Exclusive<Cell, Flag> {
    let mut block = acquire(pool).unwrap();
    block.memory_mut().unwrap().write(value);
    block
}

/// The address of a block's memory, as a copy engine knows it.
struct Source(*const Cell);

// SAFETY: the pool keeps the memory until the copy's fence is done, or so it promises.
unsafe impl Send for Source {}

/// A GPU that reads `value` and then sets the flag.
fn gpu(memory: &Cell, value: u32) -> (Arc<Flag>, thread::JoinHandle<()>) {
    let (source, done) = (Source(memory), Arc::new((Mutex::new(false), Condvar::new())));
    let fence = Arc::new(Flag(done.clone()));
    let work = thread::spawn(move || {
        let source = source;
        // SAFETY: a block's memory is freed with its pool, which waits for the fence.
        let memory = unsafe { &*source.0 };
        assert_eq!(memory.read(), value);
        *done.0.lock().unwrap() = true;
        done.1.notify_all();
    });
    (fence, work)
}

/// All interleavings with at most three preemptions, which is where such faults are found.
fn model(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(body);
}

#[test]
fn a_block_is_written_again_only_after_its_copy() {
    model(|| {
        let pool = Shared::new(BLOCK);
        let block = written(&pool, 1);
        let (fence, work) = gpu(block.memory().unwrap(), 1);
        block.into_share().fly(fence);
        drop(written(&pool, 2));
        work.join().unwrap();
    });
}

#[test]
fn a_pool_goes_only_after_its_copies() {
    model(|| {
        let pool = Shared::new(BLOCK);
        let block = written(&pool, 1);
        let (fence, work) = gpu(block.memory().unwrap(), 1);
        block.into_share().fly(fence);
        drop(pool);
        work.join().unwrap();
    });
}

#[test]
fn the_last_of_several_owners_gives_a_block_back() {
    model(|| {
        let pool = Shared::new(BLOCK);
        let frozen = written(&pool, 1).freeze();
        let readers = [frozen.clone(), frozen].map(|frozen| {
            thread::spawn(move || {
                let again = frozen.clone();
                drop(frozen);
                assert_eq!(again.memory().unwrap().read(), 1);
            })
        });
        // While they hold it there is none; when there is one, they are through with it.
        if let Some(mut block) = acquire(&pool) {
            block.memory_mut().unwrap().write(2);
        }
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        drop(written(&pool, 3));
        let in_use_bytes = pool.lock().in_use_bytes();
        assert_eq!(in_use_bytes, 0);
    });
}

#[test]
fn owners_and_a_copy_may_end_in_any_order() {
    model(|| {
        let pool = Shared::new(BLOCK);
        let frozen = written(&pool, 1).freeze();
        let (fence, work) = gpu(frozen.memory().unwrap(), 1);
        frozen.share().fly(fence);
        let owner = thread::spawn(move || assert_eq!(frozen.memory().unwrap().read(), 1));
        if let Some(mut block) = acquire(&pool) {
            block.memory_mut().unwrap().write(2);
        }
        owner.join().unwrap();
        drop(written(&pool, 3));
        work.join().unwrap();
    });
}

#[test]
fn two_threads_may_wait_for_one_copy() {
    model(|| {
        let pool = Shared::new(BLOCK);
        let block = written(&pool, 1);
        let (fence, work) = gpu(block.memory().unwrap(), 1);
        block.into_share().fly(fence);
        let other = pool.clone();
        let waiting = thread::spawn(move || acquire(&other).map(|mut block| block.memory_mut().unwrap().write(2)));
        let mine = acquire(&pool).map(|mut block| block.memory_mut().unwrap().write(3));
        let theirs = waiting.join().unwrap();
        assert!(mine.is_some() || theirs.is_some(), "the block was lost");
        work.join().unwrap();
        drop(written(&pool, 4));
        let fence = pool.lock().take_fence();
        let another = pool.lock().take_fence();
        assert!(fence.is_some() && another.is_none(), "the fence is there once");
    });
}

#[test]
fn a_frozen_block_is_found_by_its_address_while_it_is_held() {
    model(|| {
        let pool = Shared::new(BLOCK);
        let frozen = written(&pool, 1).freeze();
        let (held, other) = (frozen.clone(), pool.clone());
        let uploading = thread::spawn(move || {
            let (share, offset) = other.frozen_around(BLOCK + 10, 20).unwrap();
            drop(held);
            assert_eq!((share.memory().unwrap().read(), offset), (1, 10));
        });
        drop(frozen);
        if let Some(mut block) = acquire(&pool) {
            block.memory_mut().unwrap().write(2);
        }
        uploading.join().unwrap();
        assert!(pool.frozen_around(BLOCK, 1).is_none());
        drop(written(&pool, 3));
    });
}
