use foveal_device::{DType, Device, Tensor};
use foveal_testkit::assert_bitwise_equal;

use super::{Embed, RowReplace, embed};
use crate::OpError;
use crate::testing::{ACTIVATIONS, blamed, device_tests, load, random, store, tensor, zeros};

device_tests!(
    every_row_is_its_source,
    a_placeholder_id_is_not_looked_up,
    sampled_tokens_are_looked_up_where_they_lie,
    misfits_are_named,
    what_is_outside_is_refused_or_zeros,
);

fn run(
    device: &Device,
    table: &Tensor,
    ids: &[i32],
    image: Option<(&Tensor, &[i32])>,
    out: &mut Tensor,
) -> Result<(), OpError> {
    let ids = tensor(device, ids, &[ids.len()]);
    let index = image.map(|(_, index)| tensor(device, index, &[index.len()]));
    let image = image.zip(index.as_ref());
    embed(
        device.stream(),
        Embed {
            table: table.view(),
            input_ids: ids.view(),
            sampled: None,
            image: image.map(|((rows, _), index)| RowReplace { rows: rows.view(), index: index.view() }),
            out: out.view_mut().unwrap(),
        },
    )
}

fn every_row_is_its_source(device: &Device) {
    for (n, vocab_size, d) in [(40, 300, 1024), (1, 1, 1), (7, 11, 123), (0, 5, 8), (3, 5, 0)] {
        for (from, to) in ACTIVATIONS.into_iter().flat_map(|from| ACTIVATIONS.map(|to| (from, to))) {
            let table = random(device, 1, from, &[vocab_size, d]);
            let rows = random(device, 2, DType::F32, &[3, d]);
            let ids: Vec<i32> = (0..n).map(|i| ((i * 7 + 3) % vocab_size) as i32).collect();
            let index: Vec<i32> = (0..n as i32).map(|i| if i % 4 == 1 { i % 3 } else { -1 }).collect();
            let mut out = zeros(device, to, &[n, d]);
            for image in [None, Some((&rows, &index[..]))] {
                run(device, &table, &ids, image, &mut out).unwrap();
                let (table, rows) = (load(&table), load(&rows));
                let mut expected = Vec::new();
                for (i, &id) in ids.iter().enumerate() {
                    let source = image.and_then(|(_, index)| usize::try_from(index[i]).ok());
                    let (source, row) = source.map_or((&table, id as usize), |row| (&rows, row));
                    expected.extend_from_slice(&source[row * d..(row + 1) * d]);
                }
                // Rounded once to the output's type, which `store` does too.
                assert_bitwise_equal(&load(&out), &load(&store(device, &expected, to, &[n, d])));
            }
        }
    }
}

fn sampled_tokens_are_looked_up_where_they_lie(device: &Device) {
    let table = random(device, 1, DType::BF16, &[10, 8]);
    let run = |ids: &[i32], sampled: &[i32]| {
        let (ids, sampled) = (tensor(device, ids, &[ids.len()]), tensor(device, sampled, &[sampled.len()]));
        let mut out = zeros(device, DType::BF16, &[ids.shape()[0], 8]);
        let (input_ids, sampled) = (ids.view(), Some(sampled.view()));
        let args = Embed { table: table.view(), input_ids, sampled, image: None, out: out.view_mut().unwrap() };
        embed(device.stream(), args).map(|()| load(&out))
    };
    let rows = load(&table);
    let expected: Vec<f32> = [3, 7, 9, 2].iter().flat_map(|&id| &rows[id * 8..][..8]).copied().collect();
    assert_bitwise_equal(&run(&[3, -2, -1, -3], &[9, 7, 2]).unwrap(), &expected);
    // Neither a token beyond the vocabulary nor one that was not sampled.
    for (ids, sampled) in [([-1], [10]), ([-1], [-1]), ([-2], [3])] {
        match run(&ids, &sampled) {
            Ok(row) => assert!(device.is_cuda() && row.iter().all(|&x| x == 0.0)),
            Err(error) => assert_eq!(blamed(Err(error)), "input_ids"),
        }
    }
}

fn a_placeholder_id_is_not_looked_up(device: &Device) {
    let (table, rows) = (random(device, 1, DType::F32, &[4, 2]), random(device, 2, DType::F32, &[1, 2]));
    let mut out = zeros(device, DType::F32, &[2, 2]);
    run(device, &table, &[99, 3], Some((&rows, &[0, -1])), &mut out).unwrap();
    assert_bitwise_equal(&load(&out)[..2], &load(&rows));
}

/// The host of a GPU reads neither ids nor indices.
fn what_is_outside_is_refused_or_zeros(device: &Device) {
    let (table, rows) = (random(device, 1, DType::F32, &[4, 2]), random(device, 2, DType::F32, &[1, 2]));
    let mut out = random(device, 3, DType::F32, &[2, 2]);
    for id in [-1, 4, i32::MIN, i32::MAX] {
        for image in [None, Some((&rows, &[0, -1][..]))] {
            let result = run(device, &table, &[0, id], image, &mut out);
            if device.is_cuda() {
                result.unwrap();
                assert_eq!(load(&out)[2..], [0.0, 0.0]);
                continue;
            }
            let error = result.unwrap_err();
            assert!(
                matches!(error, OpError::Value { arg: "input_ids", index: 1, value, .. } if value == i64::from(id))
            );
        }
    }
    for row in [-2, 1, i32::MAX] {
        let result = run(device, &table, &[0, 3], Some((&rows, &[-1, row])), &mut out);
        if device.is_cuda() {
            result.unwrap();
            assert_bitwise_equal(&load(&out)[2..], &load(&table)[6..]);
        } else {
            assert_eq!(blamed(result), "image.index");
        }
    }
}

fn misfits_are_named(device: &Device) {
    let f32s = |dims: &[usize]| zeros(device, DType::F32, dims);
    let (table, rows) = (f32s(&[4, 2]), f32s(&[1, 2]));
    let mut out = f32s(&[2, 2]);
    assert_eq!(blamed(run(device, &table, &[0, 0], Some((&rows, &[0])), &mut out)), "image.index");
    assert_eq!(blamed(run(device, &table, &[0, 0], Some((&f32s(&[1, 3]), &[0, 0])), &mut out)), "image.rows");
    assert_eq!(blamed(run(device, &table, &[0], None, &mut out)), "out");
    assert_eq!(blamed(run(device, &zeros(device, DType::U8, &[4, 2]), &[0, 0], None, &mut out)), "table");
    assert_eq!(blamed(run(device, &f32s(&[4]), &[0, 0], None, &mut out)), "table");
    assert_eq!(blamed(run(device, &table, &[0, 0], None, &mut zeros(device, DType::I32, &[2, 2]))), "out");
}
