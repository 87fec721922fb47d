//! The rows of a step.

use foveal_llm::{Batch, ImageRows, KvLayout};
use foveal_types::{PreparedRequest, TokenId};

/// A step that is being put together, sequence by sequence; see [`Batch`].
pub(super) struct Rows {
    input_ids: Vec<i32>,
    positions: [Vec<i32>; 3],
    slot_mapping: Vec<i64>,
    cu_seqlens: Vec<i32>,
    context_lens: Vec<i32>,
    block_tables: Vec<i32>,
    logit_rows: Vec<i32>,
    /// Which embedding each row takes, -1 for text.
    image_index: Vec<i32>,
    num_embeds: usize,
    /// Pages of each sequence: the `s`th has those from `s * max_blocks` on, in order.
    max_blocks: usize,
}

fn int(n: usize) -> i32 {
    n as i32
}

impl Rows {
    pub(super) fn new(max_blocks: usize) -> Self {
        Self {
            input_ids: Vec::new(),
            positions: Default::default(),
            slot_mapping: Vec::new(),
            cu_seqlens: vec![0],
            context_lens: Vec::new(),
            block_tables: Vec::new(),
            logit_rows: Vec::new(),
            image_index: Vec::new(),
            num_embeds: 0,
            max_blocks,
        }
    }

    /// A whole prompt and the tokens behind it; the logits of the last `num_wanted` rows are wanted.
    pub(super) fn push_prompt(&mut self, seq: usize, request: &PreparedRequest, behind: &[TokenId], num_wanted: usize) {
        let n = request.input_ids.len();
        let mut index = vec![-1; n];
        for row in request.image_token_ranges.iter().cloned().flatten() {
            index[row] = int(self.num_embeds);
            self.num_embeds += 1;
        }
        for (row, (&id, &embed)) in request.input_ids.iter().zip(&index).enumerate() {
            let position = [0, 1, 2].map(|axis| request.positions[axis * n + row]);
            self.row(seq, row, id, position, embed);
        }
        for (i, &id) in behind.iter().enumerate() {
            self.row(seq, n + i, id, [position_behind(request, i); 3], -1);
        }
        self.end(seq, n + behind.len(), num_wanted);
    }

    /// Token number `i` behind a prompt; its logits are wanted.
    pub(super) fn push_token(&mut self, seq: usize, request: &PreparedRequest, i: usize, id: TokenId) {
        let row = request.input_ids.len() + i;
        self.row(seq, row, id, [position_behind(request, i); 3], -1);
        self.end(seq, row + 1, 1);
    }

    /// Text from the place `start` on; the logits of all of its rows are wanted.
    pub(super) fn push_text(&mut self, seq: usize, start: usize, ids: &[TokenId]) {
        for (i, &id) in ids.iter().enumerate() {
            self.row(seq, start + i, id, [int(start + i); 3], -1);
        }
        self.end(seq, start + ids.len(), ids.len());
    }

    fn row(&mut self, seq: usize, place: usize, id: TokenId, position: [i32; 3], embed: i32) {
        self.input_ids.push(id.0.cast_signed());
        for (axis, position) in self.positions.iter_mut().zip(position) {
            axis.push(position);
        }
        // Pages lie in order, so a token's slot is its place behind the sequence's first.
        self.slot_mapping.push((seq * self.max_blocks * KvLayout::DEFAULT_PAGE + place) as i64);
        self.image_index.push(embed);
    }

    fn end(&mut self, seq: usize, context_len: usize, num_wanted: usize) {
        let n = self.input_ids.len();
        self.cu_seqlens.push(int(n));
        self.context_lens.push(int(context_len));
        self.block_tables.extend(int(seq * self.max_blocks)..int((seq + 1) * self.max_blocks));
        self.logit_rows.extend(int(n - num_wanted)..int(n));
    }

    /// Calls `run` with the batch; `image` gives the pictures' rows for an index.
    pub(super) fn with_batch<R>(&self, image: Option<ImageRows<'_>>, run: impl FnOnce(&Batch<'_>) -> R) -> R {
        let image = image.map(|image| ImageRows { index: &self.image_index, ..image });
        run(&Batch {
            input_ids: &self.input_ids,
            positions: &self.positions.concat(),
            slot_mapping: &self.slot_mapping,
            cu_seqlens: &self.cu_seqlens,
            context_lens: &self.context_lens,
            block_tables: &self.block_tables,
            max_blocks: self.max_blocks,
            logit_rows: &self.logit_rows,
            image,
        })
    }
}

/// Where token number `i` behind a prompt stands, on all axes.
fn position_behind(request: &PreparedRequest, i: usize) -> i32 {
    int(request.input_ids.len() + i) + request.rope_delta
}
