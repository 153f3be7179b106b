//! Which task a PE runs next: start tasks in order, then whatever is ready first.

use super::cause::Cause;
use super::ops::Wait;
use super::pe::Pe;
use super::ports::Cx;
use crate::network::NONE;
use crate::program::Trigger;
use std::collections::VecDeque;

/// What a PE does next.
pub enum Pick {
    /// This task, from this time on.
    Run { task: usize, at: u64 },
    /// A decision that must wait for its time.
    Later(u64),
    /// Nothing until a word comes.
    Wait,
    /// No task is left.
    Finished,
}

impl Pe {
    /// Chooses the next task: start tasks in order, then whatever is ready first.
    pub fn pick(&mut self, cx: &mut Cx) -> Pick {
        let class = cx.class;
        let mut best: Option<(u64, usize)> = None;
        let mut open = 0;
        for (index, task) in class.tasks.iter().enumerate() {
            let times = task.times.at(&self.env(&cx.ports)).max(0) as u64;
            if cx.runs[index].done >= times {
                continue;
            }
            let ready = match task.trigger {
                Trigger::Start => return Pick::Run { task: index, at: self.time },
                Trigger::Local => (cx.runs[index].pending > 0).then_some(self.time),
                Trigger::Data { .. } => {
                    let end = cx.data(task.slot);
                    let front = if end == NONE { None } else { cx.links.front(end) };
                    front.map(|word| word.time.max(self.time))
                }
                Trigger::Control { .. } => {
                    cx.data(task.slot);
                    let first = cx.controls.get(&(cx.ports.pe, task.slot)).and_then(|times| times.front());
                    first.map(|(time, _)| (*time).max(self.time))
                }
            };
            open += 1;
            if let Some(ready) = ready
                && best.is_none_or(|(b, _)| ready < b)
            {
                best = Some((ready, index));
            }
        }
        match best {
            None if open == 0 => Pick::Finished,
            Some((at, task)) if open == 1 || at <= cx.links.clock => Pick::Run { task, at },
            later => {
                self.await_triggers(cx);
                later.map_or(Pick::Wait, |(at, _)| Pick::Later(at))
            }
        }
    }

    fn await_triggers(&self, cx: &mut Cx) {
        for (index, task) in cx.class.tasks.iter().enumerate() {
            let open = cx.runs[index].done < task.times.at(&self.env(&cx.ports)).max(0) as u64;
            if open && matches!(task.trigger, Trigger::Data { .. } | Trigger::Control { .. }) {
                let end = cx.ports.input(task.slot);
                cx.links.await_word(end);
                cx.scratch.waits.push(Wait::Word(end));
            }
        }
    }

    /// Begins a task at `at`.
    pub fn begin(&mut self, task: usize, at: u64, cx: &mut Cx) {
        let lowered = &cx.class.tasks[task];
        let late = at > self.time;
        self.spent.wait_data += at - self.time;
        self.time = at;
        match lowered.trigger {
            Trigger::Start => {}
            Trigger::Local => cx.runs[task].pending -= 1,
            Trigger::Data { .. } => {
                let end = cx.ports.input(lowered.slot);
                if let Some(word) = cx.links.front(end) {
                    self.trigger = word.value;
                    if late {
                        *cx.causes = cx.links.arrival_causes(end);
                    }
                    cx.links.take(end, at, *cx.causes);
                }
            }
            Trigger::Control { .. } => {
                let first = cx.controls.get_mut(&(cx.ports.pe, lowered.slot)).and_then(VecDeque::pop_front);
                if let Some((_, causes)) = first.filter(|_| late) {
                    *cx.causes = causes;
                }
            }
        }
        if lowered.trigger != Trigger::Start {
            self.time += cx.activation;
            self.spent.activation += cx.activation;
            cx.causes.add(Cause::TaskActivation, cx.activation);
        }
        self.turn = cx.runs[task].done;
        self.running = Some(task as u32);
        self.pc = 0;
    }
}
