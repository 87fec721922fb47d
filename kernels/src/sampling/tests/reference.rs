//! What a row must choose, by sorting everything in float64.

use crate::sampling::RowSampling;

/// The kept tokens and their probabilities (none: 0) as HF's warpers leave them, by sorting everything, and how near to a
/// different set the cut of top-p or min-p is. Of tokens tied at top-p's cut the lower ids stay.
pub(super) fn reference_probabilities(logits: &[f32], sampling: &RowSampling) -> (Vec<f64>, f64) {
    let scores: Vec<f64> = logits.iter().map(|&l| f64::from(l) / f64::from(sampling.temperature)).collect();
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    if sampling.top_k > 0 && (sampling.top_k as usize) < order.len() {
        let least = scores[order[sampling.top_k as usize - 1]];
        order.retain(|&id| scores[id] >= least);
    }
    let best = scores[order[0]];
    let weight = |id: usize| (scores[id] - best).exp();
    let mut margin = f64::INFINITY;
    if sampling.top_p < 1.0 {
        let total: f64 = order.iter().map(|&id| weight(id)).sum();
        let mut better = 0.0;
        let mut len = 0;
        for &id in &order {
            let slack = f64::from(sampling.top_p) - better / total;
            margin = margin.min(slack.abs());
            if slack <= 0.0 && len > 0 {
                break;
            }
            better += weight(id);
            len += 1;
        }
        order.truncate(len);
    }
    let min_p = f64::from(sampling.min_p);
    margin = order.iter().map(|&id| (weight(id) - min_p).abs()).fold(margin, f64::min);
    order.retain(|&id| weight(id) >= min_p);
    let total: f64 = order.iter().map(|&id| weight(id)).sum();
    let mut probabilities = vec![0.0; logits.len()];
    order.iter().for_each(|&id| probabilities[id] = weight(id) / total);
    (probabilities, margin)
}

/// The token at `uniform` of the probabilities laid end to end, and how near the next token is.
pub(super) fn reference_draw(probabilities: &[f64], uniform: f64) -> (usize, f64) {
    let (mut sum, mut margin, mut token) = (0.0, f64::INFINITY, None);
    for (id, &p) in probabilities.iter().enumerate().filter(|(_, p)| **p > 0.0) {
        sum += p;
        margin = margin.min((sum - uniform).abs());
        if sum > uniform && token.is_none() {
            token = Some(id);
        }
    }
    (token.unwrap(), margin)
}
