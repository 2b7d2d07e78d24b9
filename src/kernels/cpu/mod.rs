//! CPU infrastructure shared by the kernels: SIMD dispatch, the thread pool, huge pages, element
//! types, vector math and dense products.

pub(in crate::kernels) mod element;
pub mod gemm;
pub(in crate::kernels) mod math;
pub mod pages;
pub(in crate::kernels) mod parallel;
pub(in crate::kernels) mod pool;
pub(in crate::kernels) mod simd;
