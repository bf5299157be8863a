//! Results for people: the table on the terminal, the curve as a picture, the model card.

pub mod corpus_page;
pub mod html;
pub mod loss_curve;
pub mod model_card;
pub mod packages_page;
pub mod rows;
pub mod study_page;
pub mod suite_page;
pub mod table;
pub mod unseen_page;
