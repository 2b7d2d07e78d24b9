//! CPU infrastructure shared by the kernels: SIMD dispatch, the thread pool, huge pages, element
//! types, vector math and dense products.

pub mod element;
pub mod gemm;
pub mod math;
pub mod pages;
pub mod parallel;
pub mod pool;
pub mod simd;
