//! Normalises one row and prints it, or one line that says why it could not.
use rmsnorm::{Backward, Context, Forward, GluBackward, GluForward};

fn run() -> rmsnorm::Result<[f32; 2]> {
    let context = Context::cpu()?;
    let mut y = [0f32; 2];
    Forward::new(&[3f32, 4.0], &mut y).eps(0.0).run(&context)?;
    let mut dweight = [0f32; 2];
    Backward::new(&y, &[3f32, 4.0]).dweight(&mut dweight).eps(0.0).run(&context)?;
    let (mut gated, mut dgate) = ([0f32; 2], [0f32; 2]);
    GluForward::new(&y, &y, &mut gated).run(&context)?;
    GluBackward::new(&gated, &y, &y).dgate(&mut dgate).run(&context)?;
    Ok(y)
}

fn main() {
    match run() {
        Ok(y) => println!("{} {}", y[0], y[1]),
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    }
}
