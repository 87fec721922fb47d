//! A report as JSON, in the keys of `vllm bench serve --save-result`.

use serde_json::{Map, Value, json};

use crate::report::{LoadReport, prompt_tokens};
use crate::schedule::Outcome;

pub(crate) fn result(report: &LoadReport, is_detailed: bool) -> Value {
    let options = &report.options;
    let rate = options.request_rate;
    let mut result = Map::new();
    let mut put = |key: &str, value: Value| result.insert(key.to_owned(), value);
    put("date", json!(report.date));
    put("backend", json!(report.api.backend()));
    put("model_id", json!(report.model));
    put("num_prompts", json!(options.num_prompts));
    // JSON has no infinity.
    put("request_rate", if rate.is_finite() { json!(rate) } else { json!("inf") });
    put("burstiness", if options.burstiness.is_finite() { json!(options.burstiness) } else { json!("inf") });
    put("max_concurrency", json!(options.max_concurrency));
    put("duration", json!(report.duration));
    put("completed", json!(report.completed));
    put("failed", json!(report.failed));
    put("total_input_tokens", json!(report.total_input_tokens));
    put("total_output_tokens", json!(report.total_output_tokens));
    put("request_throughput", json!(report.request_throughput));
    put("output_throughput", json!(report.output_throughput));
    put("total_token_throughput", json!(report.total_token_throughput));
    put("max_output_tokens_per_s", json!(report.max_output_tokens_per_s));
    put("max_concurrent_requests", json!(report.max_concurrent_requests));
    let groups = [("ttft", report.ttft_ms), ("tpot", report.tpot_ms), ("itl", report.itl_ms), ("e2el", report.e2el_ms)];
    for (name, of) in groups {
        let values = [("mean", of.mean), ("median", of.p50), ("std", of.std), ("p90", of.p90), ("p99", of.p99)];
        for (rank, value) in values {
            put(&format!("{rank}_{name}_ms"), json!(value));
        }
    }
    // What vLLM's results don't say: the requests' shape.
    put("input_len", json!(options.shape.input_len));
    put("output_len", json!(options.shape.output_len));
    put("num_images", json!(options.shape.num_images));
    put("image_size", json!(options.shape.image_size));
    put("image_format", json!(options.shape.image_format.as_str()));
    put("seed", json!(options.seed));
    if is_detailed {
        result.extend(details(report));
    }
    Value::Object(result)
}

/// An entry for every request, in seconds and in their order; zeros and the reason where one failed.
fn details(report: &LoadReport) -> Map<String, Value> {
    let mut details = Map::new();
    let mut put = |key: &str, of: &dyn Fn(&Outcome) -> Value| {
        details.insert(key.to_owned(), report.outcomes.iter().map(of).collect());
    };
    put("input_lens", &|outcome| match &outcome.result {
        Ok(answer) => json!(prompt_tokens(&report.options.shape, answer)),
        Err(_) => json!(report.options.shape.input_len),
    });
    put("output_lens", &|outcome| json!(outcome.result.as_ref().map_or(0, |answer| answer.output_tokens())));
    put("ttfts", &|outcome| json!(outcome.result.as_ref().map_or(0.0, |answer| answer.ttft.as_secs_f64())));
    put("itls", &|outcome| {
        let gaps = outcome.result.iter().flat_map(|answer| &answer.itl);
        gaps.map(|gap| json!(gap.as_secs_f64())).collect()
    });
    put("latencies", &|outcome| json!(outcome.result.as_ref().map_or(0.0, |answer| answer.latency.as_secs_f64())));
    put("start_times", &|outcome| json!(outcome.start.as_secs_f64()));
    put("errors", &|outcome| json!(outcome.result.as_ref().err().map_or("", String::as_str)));
    details
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::report::tests::report;

    #[test]
    fn the_keys_are_those_of_vllm() {
        let result = report().to_json(false);
        let mut expected = vec![
            "date",
            "backend",
            "model_id",
            "num_prompts",
            "request_rate",
            "burstiness",
            "max_concurrency",
            "duration",
            "completed",
            "failed",
            "total_input_tokens",
            "total_output_tokens",
            "request_throughput",
            "output_throughput",
            "total_token_throughput",
            "max_output_tokens_per_s",
            "max_concurrent_requests",
        ];
        let groups = ["ttft", "tpot", "itl", "e2el"];
        let ranks = ["mean", "median", "std", "p90", "p99"];
        let names: Vec<_> = groups.iter().flat_map(|g| ranks.map(|r| format!("{r}_{g}_ms"))).collect();
        expected.extend(names.iter().map(String::as_str));
        let keys: Vec<_> = result.as_object().unwrap().keys().take(expected.len()).collect();
        assert_eq!(keys, expected);
        assert_eq!((&result["date"], &result["backend"]), (&json!("20260131-235959"), &json!("openai-chat")));
        assert_eq!((&result["request_rate"], &result["max_concurrency"]), (&json!("inf"), &json!(2)));
        assert_eq!((&result["completed"], &result["median_ttft_ms"]), (&json!(3), &json!(20.0)));
        assert_eq!(result["image_size"], json!([8, 4]));
        assert!(result.get("itls").is_none());
    }

    #[test]
    fn details_are_a_list_for_every_request() {
        let result = report().to_json(true);
        assert_eq!(result["input_lens"], json!([7, 9, 5, 5]));
        assert_eq!(result["output_lens"], json!([3, 3, 0, 3]));
        assert_eq!(result["ttfts"], json!([0.01, 0.02, 0.0, 1.0]));
        assert_eq!(result["itls"], json!([[0.01, 0.02], [0.002, 0.002], [], [0.1, 0.2]]));
        assert_eq!(result["errors"], json!(["", "", "no room", ""]));
        assert_eq!(result["latencies"], json!([0.04, 0.024, 0.0, 1.3]));
        assert_eq!(result["start_times"], json!([0.0, 0.005, 0.03, 0.04]));
    }
}
