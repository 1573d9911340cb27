//! l4-datapath
