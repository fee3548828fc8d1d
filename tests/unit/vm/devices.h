/* devices.h - what a guest with a NIC and a disk talks to: a switch of one port that counts, and an nbdkit that keeps a disk in memory. */
#ifndef VCFT_TEST_VM_DEVICES_H
#define VCFT_TEST_VM_DEVICES_H

#include <glib.h>
#include <stdatomic.h>
#include <stdbool.h>

/* Accepts QEMU's connections one after the other, reads frames (u32 length, big-endian, then the frame) and counts them. */
struct port { char *path; int listener; GThread *thread; atomic_uint connections, frames, announcements; };
void port_open(struct port *port, const char *dir);
void port_close(struct port *port);

/* nbdkit's memory plugin, 16 MiB. */
struct disk_server { char *path; GPid pid; };
bool disk_requires(void);
void disk_open(struct disk_server *disk, const char *dir);
void disk_close(struct disk_server *disk);

#endif
