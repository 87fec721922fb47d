//! How a cache's element type is asked for.

use foveal_device::DType;

/// The element type of a KV cache by vLLM's word for it: `auto` (`None`, as the device computes), `fp8` or `fp8_e4m3`,
/// `bfloat16`, `float16`, `float32`.
///
/// # Errors
/// For another word, with those that are known.
pub fn parse_kv_cache_dtype(text: &str) -> Result<Option<DType>, String> {
    Ok(match text {
        "auto" => None,
        "fp8" | "fp8_e4m3" => Some(DType::F8E4M3),
        "bfloat16" | "bf16" => Some(DType::BF16),
        "float16" | "f16" => Some(DType::F16),
        "float32" | "f32" => Some(DType::F32),
        other => return Err(format!("`{other}` is not known; use auto, fp8, bfloat16, float16 or float32")),
    })
}

#[cfg(test)]
mod tests {
    use foveal_device::DType;

    use super::parse_kv_cache_dtype;

    #[test]
    fn vllms_words_are_read() {
        let of = |text| parse_kv_cache_dtype(text).unwrap();
        assert_eq!(of("auto"), None);
        assert_eq!([of("fp8"), of("fp8_e4m3")], [Some(DType::F8E4M3); 2]);
        assert_eq!(of("bfloat16"), Some(DType::BF16));
        assert!(parse_kv_cache_dtype("fp8_e5m2").unwrap_err().contains("fp8"));
    }
}
