//! What most requests are answered with, and the log of those that failed.

use super::adaptor::Adaptor;
use super::convert::attr_out;
use crate::errno::{chain, errno, is_failure};
use crate::fs::{Error, Node, XattrReply};
use fuser::{Errno, INodeNo, ReplyAttr, ReplyEmpty, ReplyEntry, ReplyXattr};

impl Adaptor {
    /// Logs a failed operation and gives its error number: what is broken as an error, what was merely asked in vain
    /// at debug level.
    pub(super) fn fail(&self, operation: &str, ino: u64, error: &Error) -> Errno {
        let number = errno(error);
        if is_failure(number) {
            self.filesystem.counters().failure();
            tracing::error!(operation, ino, errno = number, "{}", chain(error));
        } else {
            tracing::debug!(operation, ino, errno = number, "{}", chain(error));
        }
        Errno::from_i32(number)
    }

    pub(super) fn entry(&self, operation: &str, parent: INodeNo, result: Result<Node, Error>, reply: ReplyEntry) {
        match result {
            Ok(node) => reply.entry(&self.filesystem.lifetime(), &attr_out(&node), self.generation),
            Err(error) => reply.error(self.fail(operation, parent.0, &error)),
        }
    }

    pub(super) fn done(&self, operation: &str, ino: INodeNo, result: Result<(), Error>, reply: ReplyEmpty) {
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(self.fail(operation, ino.0, &error)),
        }
    }

    pub(super) fn attr(&self, operation: &str, ino: INodeNo, result: Result<Node, Error>, reply: ReplyAttr) {
        match result {
            Ok(node) => reply.attr(&self.filesystem.lifetime(), &attr_out(&node)),
            Err(error) => reply.error(self.fail(operation, ino.0, &error)),
        }
    }

    pub(super) fn xattr(&self, operation: &str, ino: INodeNo, result: Result<XattrReply, Error>, reply: ReplyXattr) {
        match result {
            Ok(XattrReply::Data(data)) => reply.data(&data),
            Ok(XattrReply::Size(size)) => match u32::try_from(size) {
                Ok(size) => reply.size(size),
                Err(_) => reply.error(Errno::E2BIG),
            },
            Err(error) => reply.error(self.fail(operation, ino.0, &error)),
        }
    }
}
