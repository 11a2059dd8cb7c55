//! The three kinds of Tandem as types. Knows neither program.
