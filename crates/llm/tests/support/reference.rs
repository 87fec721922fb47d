//! The decoder as plain loops in float64 over one whole prompt: no cache, no pages, no chunks. Follows
//! `Qwen2VLTextModel` and `Qwen3VLTextModel` of HF transformers 5.17.

use foveal_checkpoint::{ModelConfig, WeightSource};
use foveal_device::DType;
use half::bf16;

use super::{Pictures, Prompt};

type Rows = Vec<Vec<f64>>;

pub struct Reference<'a> {
    pub config: &'a ModelConfig,
    pub weights: &'a WeightSource,
}

impl Reference<'_> {
    /// Logits of every row.
    pub fn logits(&self, prompt: &Prompt, pictures: Option<&Pictures>) -> Rows {
        let text = &self.config.text;
        let table = self.matrix("model.language_model.embed_tokens.weight", text.vocab_size, text.hidden_size);
        let picture_row = |rows: &[f32], i: usize| -> Vec<f64> {
            rows[i * text.hidden_size..(i + 1) * text.hidden_size].iter().map(|&x| f64::from(x)).collect()
        };
        let embed = |(&id, &row): (&i32, &i32)| match pictures {
            Some(pictures) if row >= 0 => picture_row(&pictures.embeds, row as usize),
            _ => table[id as usize].clone(),
        };
        let mut hidden: Rows = prompt.input_ids.iter().zip(&prompt.image_index).map(embed).collect();
        for layer in 0..text.num_hidden_layers {
            self.layer(layer, prompt, &mut hidden);
            let Some(level) = pictures.and_then(|pictures| pictures.deepstack.get(layer)) else { continue };
            for (row, &i) in hidden.iter_mut().zip(&prompt.image_index).filter(|(_, i)| **i >= 0) {
                add(row, &picture_row(level, i as usize));
            }
        }
        let normed = self.norm("model.language_model.norm.weight", &hidden);
        let head = match self.config.tie_word_embeddings {
            true => table,
            false => self.matrix("lm_head.weight", text.vocab_size, text.hidden_size),
        };
        normed.iter().map(|row| product(&head, row)).collect()
    }

    fn layer(&self, layer: usize, prompt: &Prompt, hidden: &mut Rows) {
        let name = |part: &str| format!("model.language_model.layers.{layer}.{part}");
        let text = &self.config.text;
        let normed = self.norm(&name("input_layernorm.weight"), hidden);
        let attention = self.attention(&name, prompt, &normed);
        hidden.iter_mut().zip(&attention).for_each(|(row, delta)| add(row, delta));
        let normed = self.norm(&name("post_attention_layernorm.weight"), hidden);
        let gate = self.matrix(&name("mlp.gate_proj.weight"), text.intermediate_size, text.hidden_size);
        let up = self.matrix(&name("mlp.up_proj.weight"), text.intermediate_size, text.hidden_size);
        let down = self.matrix(&name("mlp.down_proj.weight"), text.hidden_size, text.intermediate_size);
        for (row, x) in hidden.iter_mut().zip(&normed) {
            let silu = |x: f64| x / (1.0 + (-x).exp());
            let inner: Vec<f64> = product(&gate, x).iter().zip(product(&up, x)).map(|(&g, u)| silu(g) * u).collect();
            add(row, &product(&down, &inner));
        }
    }

    fn attention(&self, name: &impl Fn(&str) -> String, prompt: &Prompt, x: &Rows) -> Rows {
        let text = &self.config.text;
        let (num_heads, num_kv_heads, dim) = (text.num_attention_heads, text.num_key_value_heads, text.head_dim);
        let q = self.heads(name, "q", num_heads, prompt, x);
        let k = self.heads(name, "k", num_kv_heads, prompt, x);
        let v = self.heads(name, "v", num_kv_heads, prompt, x);
        let out = self.matrix(&name("self_attn.o_proj.weight"), text.hidden_size, num_heads * dim);
        let mix = |row: usize| -> Vec<f64> {
            let head = |h: usize| {
                let kv = h / (num_heads / num_kv_heads);
                let score = |j: usize| dot(&q[row][h], &k[j][kv]) / (dim as f64).sqrt();
                let scores: Vec<f64> = (0..=row).map(score).collect();
                let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
                let weighted = |i: usize| (0..=row).map(|j| (scores[j] - largest).exp() / sum * v[j][kv][i]).sum();
                (0..dim).map(weighted).collect::<Vec<f64>>()
            };
            (0..num_heads).flat_map(head).collect()
        };
        (0..x.len()).map(|row| product(&out, &mix(row))).collect()
    }

    /// `[row][head][dim]` of one projection, with bias, QK-norm and rotation as they apply.
    fn heads(&self, name: &impl Fn(&str) -> String, part: &str, n: usize, prompt: &Prompt, x: &Rows) -> Vec<Rows> {
        let text = &self.config.text;
        let dim = text.head_dim;
        let weight = self.matrix(&name(&format!("self_attn.{part}_proj.weight")), n * dim, text.hidden_size);
        let bias = text.qkv_bias.then(|| self.values(&name(&format!("self_attn.{part}_proj.bias")), &[n * dim]));
        let project = |(x, position): (&Vec<f64>, &[i32; 3])| -> Rows {
            let mut row = product(&weight, x);
            if let Some(bias) = &bias {
                add(&mut row, bias);
            }
            let mut heads: Rows = row.chunks_exact(dim).map(<[f64]>::to_vec).collect();
            if part != "v" {
                if text.qk_norm {
                    heads = self.norm(&name(&format!("self_attn.{part}_norm.weight")), &heads);
                }
                heads.iter_mut().for_each(|head| self.rotate(head, position));
            }
            heads
        };
        x.iter().zip(&prompt.positions).map(project).collect()
    }

    fn rotate(&self, head: &mut [f64], position: &[i32; 3]) {
        let text = &self.config.text;
        let half = head.len() / 2;
        let [t, h, w] = text.mrope_section;
        assert_eq!(t + h + w, half);
        for i in 0..half {
            let axis = match text.mrope_interleaved {
                // t, h, w, t, h, w, ... while h and w have pairs left.
                true if i % 3 == 1 && i < 3 * h => 1,
                true if i % 3 == 2 && i < 3 * w => 2,
                true => 0,
                false => usize::from(i >= t) + usize::from(i >= t + h),
            };
            let angle = f64::from(position[axis]) / text.rope_theta.powf(i as f64 / half as f64);
            let (a, b) = (head[i], head[i + half]);
            head[i] = a * angle.cos() - b * angle.sin();
            head[i + half] = b * angle.cos() + a * angle.sin();
        }
    }

    fn norm(&self, name: &str, x: &Rows) -> Rows {
        let eps = f64::from(self.config.text.rms_norm_eps);
        let weight = self.values(name, &[x[0].len()]);
        let norm = |row: &Vec<f64>| {
            let scale = (dot(row, row) / row.len() as f64 + eps).sqrt().recip();
            row.iter().zip(&weight).map(|(x, w)| x * scale * w).collect()
        };
        x.iter().map(norm).collect()
    }

    fn matrix(&self, name: &str, rows: usize, columns: usize) -> Rows {
        self.values(name, &[rows, columns]).chunks_exact(columns).map(<[f64]>::to_vec).collect()
    }

    fn values(&self, name: &str, shape: &[usize]) -> Vec<f64> {
        let tensor = self.weights.get(name, shape).unwrap();
        assert_eq!(tensor.dtype(), DType::BF16);
        tensor.view().as_slice::<bf16>().unwrap().iter().map(|x| x.to_f64()).collect()
    }
}

fn add(row: &mut [f64], delta: &[f64]) {
    row.iter_mut().zip(delta).for_each(|(x, d)| *x += d);
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn product(weight: &Rows, x: &[f64]) -> Vec<f64> {
    weight.iter().map(|row| dot(row, x)).collect()
}
