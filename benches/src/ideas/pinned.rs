//! Copies to a GPU from page-locked memory, and from memory that the driver has to stage.

use std::time::Instant;

use anyhow::ensure;
use foveal_device::{DType, Device, StepBlock, Stream, Tensor, Times, View, counters};
use foveal_pinned::FrozenBlock;

use super::context::{Context, Machine};
use super::equal::{Equal, ensure_same};
use super::rope::noise;
use super::table::{Idea, Measured, Table};
use super::turns::microseconds;
use crate::gpu::Bench;

pub(super) const PINNED: Idea = Idea { name: "copies to the GPU", with: "page-locked", without: "pageable" };

/// Pictures that come together, and the bytes of one of 512x512.
const COUNTS: [usize; 3] = [1, 8, 32];
const PICTURE_BYTES: usize = 512 * 512 * 3;
/// Rows and sequences of steps: of decoding, and of prompts.
const STEPS: [(&str, usize, usize); 2] =
    [("a decode step's integers, 32 sequences", 32, 32), ("a step's integers, 2048 rows", 2048, 32)];
/// Rows whose logits may be wanted, and pages of a sequence, that a step's integers have room for.
const MAX_LOGIT_ROWS: usize = 256;
const MAX_BLOCKS: usize = 256;
/// Copies of each kind, of which the first ones don't count.
const ROUNDS: usize = 45;
const WARM_UP_ROUNDS: usize = 4;

/// Pixels and integers.
pub(super) fn pinned(context: &Context<'_>, table: &mut Table) -> anyhow::Result<()> {
    let Machine::Gpu(bench) = &context.machine else {
        table.left_out(PINNED, "pixels and integers", "a CPU reads the host's memory where it is");
        return Ok(());
    };
    // A stream of its own, whose copies go through no pool.
    let pageable = Device::cuda(0)?;
    for count in COUNTS {
        let case = format!("pixels of {count} x 512x512");
        let result = pixels(bench, &pageable, (&case, count), table);
        table.keep(PINNED, &case, result);
    }
    for (case, rows, seqs) in STEPS {
        let result = integers(bench, &pageable, (case, rows, seqs), table);
        table.keep(PINNED, case, result);
    }
    Ok(())
}

/// Pictures, each copied for itself, as the tower brings them.
fn pixels(bench: &Bench, pageable: &Device, (case, count): (&str, usize), table: &mut Table) -> anyhow::Result<()> {
    let all = noise(count * PICTURE_BYTES);
    let heap: Vec<Vec<u8>> = all.chunks(PICTURE_BYTES).map(<[u8]>::to_vec).collect();
    let locked: Vec<FrozenBlock> = heap.iter().map(|picture| lock(bench, picture)).collect::<anyhow::Result<_>>()?;
    let place = |device| Tensor::zeros(device, DType::U8, &[count, PICTURE_BYTES]);
    let (mut from_locked, mut from_heap) = (place(&bench.device)?, place(pageable)?);
    let times = in_turns(
        (bench.device.stream(), &mut || send(bench.device.stream(), &locked, &mut from_locked)),
        (pageable.stream(), &mut || send(pageable.stream(), &heap, &mut from_heap)),
        count as u64,
    )?;
    let sent = Tensor::from_slice(pageable, &all, &[count, PICTURE_BYTES])?;
    for arrived in [&from_locked, &from_heap] {
        ensure_same("pixels", &sent, arrived)?;
    }
    report(case, times, "", table);
    Ok(())
}

fn lock(bench: &Bench, bytes: &[u8]) -> anyhow::Result<FrozenBlock> {
    let mut block = bench.pinned().acquire(bytes.len())?;
    block.copy_from_slice(bytes);
    Ok(block.freeze())
}

fn send(stream: &Stream, pictures: &[impl AsRef<[u8]>], to: &mut Tensor) -> anyhow::Result<()> {
    for (i, picture) in pictures.iter().enumerate() {
        stream.write(picture.as_ref(), to.rows_mut(i..i + 1)?)?;
    }
    Ok(())
}

/// A step's integers, which are packed on the heap: the pool stages them in page-locked memory, the driver in its own.
fn integers(
    bench: &Bench,
    pageable: &Device,
    (case, rows, seqs): (&str, usize, usize),
    table: &mut Table,
) -> anyhow::Result<()> {
    // Ids, positions on three axes, slots of twice the size; ends and lengths and pages of sequences; rows that give logits.
    let len = rows * (1 + 3 + 2) + seqs * (2 + MAX_BLOCKS) + 1 + 2 * MAX_LOGIT_ROWS;
    let values: Vec<i32> = (0..len as i32).collect();
    let pack = |device| {
        let mut block = StepBlock::new(device, StepBlock::bytes_of::<i32>(len))?;
        let slot = block.push(&values)?;
        anyhow::Ok((block, slot))
    };
    let ((mut staged, slot), (mut heap, heap_slot)) = (pack(&bench.device)?, pack(pageable)?);
    let times = in_turns(
        (bench.device.stream(), &mut || Ok(staged.send(bench.device.stream())?)),
        (pageable.stream(), &mut || Ok(heap.send(pageable.stream())?)),
        1,
    )?;
    for (device, view) in [(&bench.device, staged.view(slot, &[len])?), (pageable, heap.view(heap_slot, &[len])?)] {
        ensure!(arrived(device, view)? == values, "a step's integers arrived changed");
    }
    report(case, times, "staged by the host, ", table);
    Ok(())
}

fn arrived(device: &Device, view: View<'_>) -> anyhow::Result<Vec<i32>> {
    let mut copy = Tensor::zeros(device, DType::I32, &[view.shape().num_elements()])?;
    if let Some(cuda) = device.stream().cuda() {
        cuda.copy(view, copy.view_mut()?)?;
    }
    Ok(copy.to_vec()?)
}

/// A stream, and what gives it copies.
type Way<'a> = (&'a Stream, &'a mut dyn FnMut() -> anyhow::Result<()>);

/// Both ways in turns: until the call returns, and until the bytes are there. Each makes `num_copies`, of its own kind.
fn in_turns<'a>(locked: Way<'a>, pageable: Way<'a>, num_copies: u64) -> anyhow::Result<[[Times; 2]; 2]> {
    let mut ways = [locked, pageable];
    let mut times = [(); 2].map(|()| [Vec::new(), Vec::new()]);
    for round in 0..WARM_UP_ROUNDS + ROUNDS {
        let before = counters();
        for ((stream, copy), [returned, there]) in ways.iter_mut().zip(&mut times) {
            stream.synchronize()?;
            let start = Instant::now();
            copy()?;
            let back = start.elapsed();
            stream.synchronize()?;
            if round >= WARM_UP_ROUNDS {
                returned.push(microseconds(back));
                there.push(microseconds(start.elapsed()));
            }
        }
        let after = counters();
        let copies = [after.pinned_copies - before.pinned_copies, after.pageable_copies - before.pageable_copies];
        ensure!(copies == [num_copies; 2], "{num_copies} copies of each kind were meant, {copies:?} were made");
    }
    Ok(times.map(|way| way.map(Times::of)))
}

fn report(case: &str, [locked, pageable]: [[Times; 2]; 2], how: &str, table: &mut Table) {
    let until = ["until the host goes on", "until the bytes are there"];
    for (until, times) in until.into_iter().zip(locked.into_iter().zip(pageable)) {
        let measured = Measured { times: times.into(), equal: Equal::Bitwise, note: format!("{how}{until}") };
        table.measured(PINNED, case, measured);
    }
}
