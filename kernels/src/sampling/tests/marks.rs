use foveal_device::{DType, Device};

use crate::OpError;
use crate::sampling::{Mark, TokenMark, mark, mark_workspace_bytes, unmark};
use crate::testing::{blamed, device_tests, tensor, zeros};

device_tests!(marks_come_and_go, misplaced_marks_are_named);

fn entry(row: u32, token_id: u32, count: i32, is_in_prompt: bool) -> TokenMark {
    TokenMark { row, token_id, count, is_in_prompt }
}

fn marks_come_and_go(device: &Device) {
    // More entries than a block has threads.
    let (r, v) = (3_usize, 601_usize);
    let entries: Vec<TokenMark> = (0..r as u32)
        .flat_map(|row| (row..v as u32).step_by(2).map(move |id| entry(row, id, (id % 4) as i32, id % 3 == 0)))
        .collect();
    let mut expected = (vec![7_i32; r * v], vec![9_u8; r * v]);
    for e in &entries {
        let at = e.row as usize * v + e.token_id as usize;
        (expected.0[at], expected.1[at]) = (e.count, u8::from(e.is_in_prompt));
    }
    let mut counts = tensor(device, &vec![7_i32; r * v], &[r, v]);
    let mut prompt = tensor(device, &vec![9_u8; r * v], &[r, v]);
    let mut workspace = zeros(device, DType::U8, &[mark_workspace_bytes(entries.len())]);
    for is_set in [true, false, true] {
        let args = Mark {
            entries: &entries,
            output_counts: counts.view_mut().unwrap(),
            prompt_mask: prompt.view_mut().unwrap(),
            workspace: workspace.view_mut().unwrap(),
        };
        match is_set {
            true => mark(device.stream(), args).unwrap(),
            false => unmark(device.stream(), args).unwrap(),
        }
        let zero_or = |value: i32| if is_set { value } else { 0 };
        let mut now = expected.clone();
        for e in &entries {
            let at = e.row as usize * v + e.token_id as usize;
            (now.0[at], now.1[at]) = (zero_or(now.0[at]), zero_or(i32::from(now.1[at])) as u8);
        }
        assert_eq!(counts.to_vec::<i32>().unwrap(), now.0);
        assert_eq!(prompt.to_vec::<u8>().unwrap(), now.1);
    }
}

fn misplaced_marks_are_named(device: &Device) {
    let try_mark = |entries: &[TokenMark], dims: [usize; 2], dtype: DType, workspace_bytes: usize| {
        let (mut counts, mut prompt) = (zeros(device, DType::I32, &[2, 5]), zeros(device, dtype, &dims));
        let mut workspace = zeros(device, DType::U8, &[workspace_bytes]);
        let args = Mark {
            entries,
            output_counts: counts.view_mut().unwrap(),
            prompt_mask: prompt.view_mut().unwrap(),
            workspace: workspace.view_mut().unwrap(),
        };
        mark(device.stream(), args)
    };
    assert_eq!(try_mark(&[], [2, 5], DType::U8, 0), Ok(()));
    assert_eq!(blamed(try_mark(&[], [2, 4], DType::U8, 0)), "prompt_mask");
    assert_eq!(blamed(try_mark(&[], [2, 5], DType::I32, 0)), "prompt_mask");
    for (misplaced, value) in [(entry(2, 0, 1, true), 2), (entry(1, 5, 1, false), 5)] {
        let error = try_mark(&[entry(1, 4, 1, true), misplaced], [2, 5], DType::U8, 24).unwrap_err();
        assert!(matches!(error, OpError::Value { arg: "entries", index: 1, value: v, .. } if v == value), "{error}");
    }
    if device.is_cuda() {
        assert_eq!(blamed(try_mark(&[entry(1, 4, 1, true)], [2, 5], DType::U8, 11)), "workspace");
    }
}
