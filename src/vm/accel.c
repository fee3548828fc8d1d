/* accel.c - can KVM run guests here? Having /dev/kvm is not enough: some hosts (nested, without hardware support) let KVM emulate every
 * instruction that a firmware executes, far slower than QEMU's own translator; QEMU does not notice and does not fall back.
 *
 *   a VM of one page, real mode:  mov ecx, LOOPS; again: dec ecx; jnz again; hlt     timed, the best of some rounds
 *
 * A processor takes 10-20 us for it, an emulator tens of ms. Done once per process; it cannot run for ever, for the loop is short. */
#include "vm/vm-private.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define LOOPS 20000u
#define ROUNDS 3
#define LONGEST (2 * NSEC_PER_MSEC)
#define CODE_AT 0x1000u

struct probe { int kvm, vm, cpu; struct kvm_run *run; size_t run_bytes; uint8_t *page; };

static const uint8_t code[] = {
	0x66, 0xb9, LOOPS & 0xff, LOOPS >> 8, 0, 0,   /* mov ecx, LOOPS */
	0x66, 0x49,                                   /* again: dec ecx */
	0x75, 0xfc,                                   /* jnz again */
	0xf4,                                         /* hlt */
};

static const char *make(struct probe *p)
{
	p->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (p->kvm < 0 || ioctl(p->kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
		return "/dev/kvm cannot be used";
	p->vm = ioctl(p->kvm, KVM_CREATE_VM, 0);
	if (p->vm < 0)
		return "KVM makes no VM";
	p->cpu = ioctl(p->vm, KVM_CREATE_VCPU, 0);
	int bytes = ioctl(p->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (p->cpu < 0 || bytes < (int)sizeof *p->run)
		return "KVM makes no vCPU";
	p->run_bytes = (size_t)bytes;
	p->run = mmap(NULL, p->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, p->cpu, 0);
	p->page = mmap(NULL, VCFT_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (p->run == MAP_FAILED || p->page == MAP_FAILED)
		return "no memory for a vCPU";
	memcpy(p->page, code, sizeof code);
	struct kvm_userspace_memory_region region = {
		.guest_phys_addr = CODE_AT, .memory_size = VCFT_PAGE_SIZE, .userspace_addr = (uintptr_t)p->page,
	};
	return ioctl(p->vm, KVM_SET_USER_MEMORY_REGION, &region) == 0 ? NULL : "KVM takes no memory";
}

static void unmake(struct probe *p)
{
	if (p->run != MAP_FAILED)
		munmap(p->run, p->run_bytes);
	if (p->page != MAP_FAILED)
		munmap(p->page, VCFT_PAGE_SIZE);
	for (int *fd = (int[]){ p->cpu, p->vm, p->kvm, -2 }; *fd != -2; fd++)
		if (*fd >= 0)
			close(*fd);
}

static const char *run_once(struct probe *p, nsec_t *ret_time)
{
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = CODE_AT, .rflags = 2 };
	if (ioctl(p->cpu, KVM_GET_SREGS, &sregs) != 0)
		return "KVM gives no registers";
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	if (ioctl(p->cpu, KVM_SET_SREGS, &sregs) != 0 || ioctl(p->cpu, KVM_SET_REGS, &regs) != 0)
		return "KVM takes no registers";
	nsec_t start = clock_now();
	int status = ioctl(p->cpu, KVM_RUN, 0);
	*ret_time = clock_now() - start;
	return status == 0 && p->run->exit_reason == KVM_EXIT_HLT ? NULL : "KVM does not run code";
}

static const char *try_kvm(void)
{
	struct probe p = { -1, -1, -1, MAP_FAILED, 0, MAP_FAILED };
	const char *failed = make(&p);
	nsec_t best = INT64_MAX, time = 0;
	for (int i = 0; i < ROUNDS && !failed; i++) {
		failed = run_once(&p, &time);
		best = MIN(best, time);
	}
	unmake(&p);
	if (!failed && best > LONGEST)
		return "KVM is here, but emulates the processor: slower than tcg";
	return failed;
}

static const char *kvm_failed;

static void try_once(void) { kvm_failed = try_kvm(); }

const char *vm_kvm_failed(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	pthread_once(&once, try_once);
	return kvm_failed;
}
