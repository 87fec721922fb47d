//! What is refused, and that garbage in device memory reaches nothing that it shouldn't.

use foveal_device::{DType, Device, Tensor};

use super::super::{PagedAttention, Plan, paged_attention, plan};
use super::problem::{Kind, Lent, Problem, kind};
use crate::testing::{Scheme, blamed, device_tests, gpu, load, tensor, values as numbers};
use crate::{KvLayout, KvScales, OpError};

device_tests!(cpu: [
    values_out_of_range_are_refused_with_their_place,
]; any: [
    misfits_are_refused_by_name,
]);

/// Operands that fit, to be spoilt one by one: two sequences of 2 rows, with contexts of 40 and 2 tokens.
struct Operands {
    q: (DType, Vec<usize>),
    layout: KvLayout,
    kv_scales: KvScales,
    k_cache: (DType, Vec<usize>),
    v_cache: (DType, Vec<usize>),
    cu_seqlens: Vec<i32>,
    context_lens: Vec<i32>,
    block_tables: (Vec<i32>, Vec<usize>),
    /// And how many scales there are, for one that asks for them.
    quantize: Option<(Scheme, usize)>,
    out: (DType, Vec<usize>),
    has_work: bool,
}

fn refusal(device: &Device, spoil: impl FnOnce(&mut Operands)) -> Result<(), OpError> {
    let layout = KvLayout { page: 32, dtype: DType::BF16, num_kv_heads: 2, head_dim: 8 };
    let mut o = Operands {
        q: (kind(device).q, vec![4, 4, 8]),
        layout,
        kv_scales: KvScales::ONE,
        k_cache: (DType::BF16, layout.cache_shape(3).to_vec()),
        v_cache: (DType::BF16, layout.cache_shape(3).to_vec()),
        cu_seqlens: vec![0, 2, 4],
        context_lens: vec![40, 2],
        block_tables: (vec![2, 0, 1, -1], vec![2, 2]),
        quantize: None,
        out: (kind(device).out, vec![4, 32]),
        has_work: true,
    };
    spoil(&mut o);
    let mut lent = Lent::new(device, 4, 2, 4, layout).filter(|_| o.has_work);
    let zeros = |(dtype, dims): &(DType, Vec<usize>)| Tensor::zeros(device, *dtype, dims).unwrap();
    let ints = |values: &[i32], dims: &[usize]| Tensor::from_slice(device, values, dims).unwrap();
    let (q, k_cache, v_cache, mut out) = (zeros(&o.q), zeros(&o.k_cache), zeros(&o.v_cache), zeros(&o.out));
    let mut scales = o.quantize.map(|(scheme, num)| (scheme, tensor(device, &vec![0.0_f32; num], &[num])));
    let cu_seqlens = ints(&o.cu_seqlens, &[o.cu_seqlens.len()]);
    let context_lens = ints(&o.context_lens, &[o.context_lens.len()]);
    let block_tables = ints(&o.block_tables.0, &o.block_tables.1);
    let args = PagedAttention {
        q: q.view(),
        layout: o.layout,
        kv_scales: o.kv_scales,
        k_cache: k_cache.view(),
        v_cache: v_cache.view(),
        cu_seqlens: cu_seqlens.view(),
        context_lens: context_lens.view(),
        block_tables: block_tables.view(),
        scale: 1.0,
        work: lent.as_mut().map(Lent::work),
        quantize: scales.as_mut().map(|(scheme, scales)| scheme.quantize(scales)),
        out: out.view_mut().unwrap(),
    };
    paged_attention(device.stream(), args)
}

fn misfits_are_refused_by_name(device: &Device) {
    let refusal = |spoil: &dyn Fn(&mut Operands)| refusal(device, spoil);
    refusal(&|_| {}).unwrap();
    assert_eq!(blamed(refusal(&|o| o.q.0 = DType::F16)), "q");
    assert_eq!(blamed(refusal(&|o| o.q.1 = vec![4, 3, 8])), "q");
    assert_eq!(blamed(refusal(&|o| o.q.1 = vec![4, 4, 9])), "q");
    assert_eq!(blamed(refusal(&|o| o.q.1 = vec![4, 32])), "q");
    assert_eq!(blamed(refusal(&|o| o.k_cache.0 = DType::F32)), "k_cache");
    assert_eq!(blamed(refusal(&|o| o.v_cache.1[0] = 2)), "v_cache");
    assert_eq!(blamed(refusal(&|o| o.k_cache.1[2] = 64)), "k_cache");
    assert_eq!(blamed(refusal(&|o| o.cu_seqlens.push(4))), "cu_seqlens");
    assert_eq!(blamed(refusal(&|o| o.context_lens.push(4))), "context_lens");
    assert_eq!(blamed(refusal(&|o| o.block_tables.1 = vec![4])), "block_tables");
    assert_eq!(blamed(refusal(&|o| o.out.1 = vec![4, 31])), "out");
    assert_eq!(blamed(refusal(&|o| o.out.0 = DType::F16)), "out");
    let no_heads = |o: &mut Operands| {
        o.layout.num_kv_heads = 0;
        (o.k_cache.1[1], o.v_cache.1[1]) = (0, 0);
    };
    assert_eq!(blamed(refusal(&no_heads)), "q");
    let bytes = |o: &mut Operands| {
        o.layout.dtype = DType::U8;
        (o.k_cache.0, o.v_cache.0) = (DType::U8, DType::U8);
    };
    assert_eq!(blamed(refusal(&bytes)), "k_cache");
    // A row's heads come one by one, and a head of 8 elements is no group.
    let rounded = |o: &mut Operands, scheme, num_scales| {
        (o.quantize, o.out.0) = (Some((scheme, num_scales)), DType::F8E4M3);
    };
    assert_eq!(blamed(refusal(&|o| rounded(o, Scheme::PerRow, 4))), "quantize");
    assert_eq!(blamed(refusal(&|o| rounded(o, Scheme::PerGroup, 4))), "quantize");
    assert_eq!(blamed(refusal(&|o| o.out.0 = DType::F8E4M3)), "out");
    assert_eq!(blamed(refusal(&|o| o.quantize = Some((Scheme::Fixed, 0)))), "out");
}

fn values_out_of_range_are_refused_with_their_place(device: &Device) {
    let place = |spoil: &dyn Fn(&mut Operands)| match refusal(device, spoil) {
        Err(OpError::Value { op: "paged_attention", arg, index, value, .. }) => (arg, index, value),
        other => panic!("{other:?}"),
    };
    assert_eq!(place(&|o| o.layout.page = 48), ("layout.page", 0, 48));
    assert_eq!(place(&|o| o.layout.page = 0), ("layout.page", 0, 0));
    assert_eq!(place(&|o| o.cu_seqlens[0] = 1), ("cu_seqlens", 0, 1));
    assert_eq!(place(&|o| o.cu_seqlens[1] = 5), ("cu_seqlens", 2, 4));
    assert_eq!(place(&|o| o.cu_seqlens[2] = 3), ("cu_seqlens", 2, 3));
    assert_eq!(place(&|o| o.context_lens[1] = 1), ("context_lens", 1, 1));
    assert_eq!(place(&|o| o.context_lens[0] = 65), ("context_lens", 0, 65));
    assert_eq!(place(&|o| o.context_lens[0] = -1), ("context_lens", 0, -1));
    assert_eq!(place(&|o| o.block_tables.0[1] = 3), ("block_tables", 1, 3));
    assert_eq!(place(&|o| o.block_tables.0[2] = -1), ("block_tables", 2, -1));
}

/// What a GPU has no kernel for, and what it can't do without.
#[test]
fn cuda_refuses_by_name_what_it_does_not_take() {
    let Some(device) = gpu() else { return };
    let heads_of = |o: &mut Operands, head_dim: usize| {
        o.layout.head_dim = head_dim;
        o.q.1[2] = head_dim;
        (o.k_cache.1[3], o.v_cache.1[3], o.out.1[1]) = (head_dim, head_dim, 4 * head_dim);
    };
    let is_dtype = |result: Result<(), OpError>| (matches!(result, Err(OpError::DType { .. })), blamed(result));
    assert_eq!(is_dtype(refusal(&device, |o| o.q.0 = DType::F32)), (true, "q"));
    assert_eq!(is_dtype(refusal(&device, |o| o.q.0 = DType::F16)), (true, "q"));
    assert_eq!(is_dtype(refusal(&device, |o| o.out.0 = DType::F32)), (true, "out"));
    for dtype in [DType::F32, DType::F16] {
        let cache = |o: &mut Operands| (o.layout.dtype, o.k_cache.0, o.v_cache.0) = (dtype, dtype, dtype);
        assert_eq!(is_dtype(refusal(&device, cache)), (true, "k_cache"));
    }
    for head_dim in [12, 136] {
        assert!(matches!(refusal(&device, |o| heads_of(o, head_dim)), Err(OpError::Shape { arg: "q", .. })));
    }
    assert!(matches!(refusal(&device, |o| o.has_work = false), Err(OpError::Mismatch { arg: "work", .. })));
    // Memory for fewer rows.
    let more = |o: &mut Operands| {
        (o.q.1[0], o.out.1[0]) = (4000, 4000);
        o.cu_seqlens[2] = 4000;
    };
    assert_eq!(blamed(refusal(&device, more)), "work.list");
}

/// Lengths and blocks that are wrong, which a GPU's host can't see, neither write nor read outside of the operands.
#[test]
fn cuda_keeps_within_bounds_whatever_the_lengths() {
    let Some(device) = gpu() else { return };
    let problem = Problem::new(&device, Kind { head_dim: 64, ..kind(&device) }, &[100]);
    let q = &problem.sequences[0].q;
    for cu_seqlens in [[0, -5, 1 << 30], [0, i32::MAX, i32::MIN], [70, 20, 90], [0, 50, 1000]] {
        for context_lens in [[100, 100], [0, -1], [i32::MAX, i32::MIN], [5000, 3]] {
            for tables in [[0, 1, 2, 3, 3, 2, 1, 0], [-1, 4, 5, i32::MAX, i32::MIN, 1 << 20, -7, 9]] {
                problem.attend(&device, q, [&cu_seqlens, &context_lens, &tables], None, None);
            }
        }
    }
    // The device is still well.
    problem.check(&device);
}

/// The list's memory may hold anything when a caller forgets to plan.
#[test]
fn cuda_keeps_within_bounds_whatever_the_list() {
    let Some(device) = gpu() else { return };
    for seed in 0..20 {
        let layout = KvLayout { page: 32, dtype: DType::BF16, num_kv_heads: 2, head_dim: 64 };
        let mut lent = Lent::new(&device, 40, 3, 8, layout).unwrap();
        let len = lent.list.shape().num_elements();
        let scale = [8.0, 200.0, 1e9][seed as usize % 3];
        let items: Vec<i32> =
            numbers(seed, len, scale).iter().map(|&x| if seed < 4 { x } else { x.abs() } as i32).collect();
        lent.list = tensor(&device, &items, &[len]);
        let zeros = |dtype, dims: &[usize]| Tensor::zeros(&device, dtype, dims).unwrap();
        let (q, cache) = (zeros(DType::BF16, &[40, 8, 64]), zeros(DType::BF16, &layout.cache_shape(3)));
        let (cu_seqlens, context_lens) = (zeros(DType::I32, &[4]), zeros(DType::I32, &[3]));
        let block_tables = zeros(DType::I32, &[3, 2]);
        let mut out = zeros(DType::BF16, &[40, 512]);
        let args = PagedAttention {
            q: q.view(),
            layout,
            kv_scales: KvScales::ONE,
            k_cache: cache.view(),
            v_cache: cache.view(),
            cu_seqlens: cu_seqlens.view(),
            context_lens: context_lens.view(),
            block_tables: block_tables.view(),
            scale: 1.0,
            work: Some(lent.work()),
            quantize: None,
            out: out.view_mut().unwrap(),
        };
        paged_attention(device.stream(), args).unwrap();
        load(&out);
    }
}

#[test]
fn a_plan_is_checked_on_every_device() {
    let device = Device::cpu(1).unwrap();
    let run = |lens: [usize; 2], num_heads: usize, dtype: DType| {
        let ints = |len: usize| tensor(&device, &vec![0_i32; len], &[len]);
        let (cu_seqlens, context_lens, mut counters) = (ints(lens[0]), ints(lens[1]), ints(9));
        let mut list = Tensor::zeros(&device, dtype, &[64]).unwrap();
        let args = Plan {
            cu_seqlens: cu_seqlens.view(),
            context_lens: context_lens.view(),
            num_heads,
            layout: KvLayout { page: 32, dtype: DType::BF16, num_kv_heads: 2, head_dim: 64 },
            list: list.view_mut().unwrap(),
            counters: counters.view_mut().unwrap(),
        };
        plan(device.stream(), args)
    };
    run([3, 2], 8, DType::I32).unwrap();
    assert_eq!(blamed(run([2, 2], 8, DType::I32)), "cu_seqlens");
    assert_eq!(blamed(run([3, 2], 7, DType::I32)), "num_heads");
    assert_eq!(blamed(run([3, 2], 8, DType::F32)), "list");
}
