//! What the end-to-end tests and the benchmark stand on: a real mesh of real processes, other programs run under a
//! time limit, waiting for events, and a steady load. Nothing here sleeps for a fixed time in order to be right.

pub mod curl;
pub mod load;
pub mod mesh;
pub mod postgres;
pub mod program;
pub mod steady;
pub mod terminal;
pub mod tools;
pub mod wait;
pub mod way;

pub use mesh::{Mesh, MeshOptions};
pub use program::{Answer, Program, Running};
pub use terminal::Terminal;
pub use tools::Skipped;
