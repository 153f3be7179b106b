//! Every setting of a verification, one after the other or several at once.

use super::report::{LeftOut, Run};
use super::settings::Setting;
use super::{Verifier, tolerances};
use crate::args::Device;
use crate::failure::{Exit, Failure};
use crate::progress::Progress;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

impl Verifier<'_> {
    /// What comes of every setting, in order. Of several, those that the device has no room for are left out, but for the
    /// first.
    ///
    /// # Errors
    /// The first fault of another kind; settings behind it are not begun.
    pub fn runs(
        &self,
        settings: &[Setting],
        progress: &mut Progress,
    ) -> Result<(Vec<Run>, Vec<LeftOut>), Failure> {
        let (mut runs, mut left_out) = (Vec::new(), Vec::new());
        for (setting, ended) in settings.iter().zip(self.endings(settings, progress)) {
            match ended {
                Ok(run) => runs.push(run),
                Err(failure) if has_no_room(&failure) && !runs.is_empty() => {
                    let faults: Vec<String> = failure.faults.into_iter().map(|fault| fault.message).collect();
                    left_out.push(LeftOut { switches: self.told(setting), why: faults.join("; ") });
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok((runs, left_out))
    }

    /// How settings end, in order, as far as they are begun. Simulations of small wafers have little for a second thread to
    /// do, so settings of the simulator share the threads; each gives the same on any number of them.
    fn endings(&self, settings: &[Setting], progress: &mut Progress) -> Vec<Result<Run, Failure>> {
        let threads = if self.args.device == Device::WaferSim { self.jobs.min(settings.len()) } else { 1 };
        let mut ended: Vec<Option<Result<Run, Failure>>> = settings.iter().map(|_| None).collect();
        if threads < 2 {
            for (setting, ended) in settings.iter().zip(&mut ended) {
                let run = progress.stage(&setting.switches.to_string(), || self.turn(setting));
                let goes_on = run.as_ref().err().is_none_or(has_no_room);
                *ended = Some(run);
                if !goes_on {
                    break;
                }
            }
            return ended.into_iter().flatten().collect();
        }
        let next = AtomicUsize::new(0);
        let (send, receive) = mpsc::channel();
        thread::scope(|scope| {
            for _ in 0..threads {
                let (next, send) = (&next, send.clone());
                scope.spawn(move || {
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        let Some(setting) = settings.get(at) else { break };
                        let run = self.turn(setting);
                        if !run.as_ref().err().is_none_or(has_no_room) {
                            next.store(settings.len(), Ordering::Relaxed);
                        }
                        if send.send((at, run)).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(send);
            while let Ok((at, run)) = progress.stage("settings on the simulated wafer", || receive.recv()) {
                ended[at] = Some(run);
            }
        });
        ended.into_iter().flatten().collect()
    }

    fn turn(&self, setting: &Setting) -> Result<Run, Failure> {
        let allowed = tolerances(self.directory, setting.precision)?;
        Ok(Run { switches: self.told(setting), allowed, checks: self.checks(setting, allowed)? })
    }
}

fn has_no_room(failure: &Failure) -> bool {
    failure.exit == Exit::DoesNotFit
}
