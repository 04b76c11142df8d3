//! The attempt loop; the only async file here.
