/* KeptView: a weak reference to a view that has ended while somebody keeps the object; and the free of such a buffer, whose
   slot lingers until that has gone (`_kmem/_lingering.py`). A variable that names the view is enough, so this is common. */

#include "_core.h"

typedef struct {
    PyWeakReference ref;
    PyObject *managed; /* the managed buffer behind the view */
    PyObject *place;   /* the slot */
} Kept;

/* The view that keeps a free from being as simple as it could be; NULL if that is something else. */
static PyObject *kept_view(Handle *handle)
{
    Slot *slot = handle->slot;
    if (!handle_is_whole(handle) || handle->lent != NULL || handle->home->lingering == NULL ||
        handle->home->magazine->watch || Py_TYPE(slot) != handle->home->magazine->core->slot ||
        (slot->extra != NULL && slot->extra->kept != NULL) || !handle_is_plain(handle) ||
        handle->home->magazine->core->haunted == NULL) /* the interpreter is being torn down */
        return NULL;
    PyObject *view = handle->view == NULL ? handle->pinned : handle->pinned == NULL ? handle->view : NULL;
    if (view == NULL || !PyMemoryView_Check(view))
        return NULL;
    PyMemoryViewObject *memory = (PyMemoryViewObject *)view;
    if (memory->flags & _Py_MEMORYVIEW_RELEASED)
        return slot->exports == 0 ? view : NULL;
    return view == handle->view && slot->exports == 1 && memory->exports == 0 && memory->mbuf->exports == 1 &&
                   memory->mbuf->master.obj == (PyObject *)slot
               ? view
               : NULL;
}

/* Free a buffer whose view somebody keeps. NULL with an error; or NULL without one, having done nothing. */
PyObject *kept_free(Handle *handle)
{
    PyObject *view = kept_view(handle);
    if (view == NULL)
        return NULL;
    Slot *slot = handle->slot;
    Core *core = handle->home->magazine->core;
    PyObject *kept = NULL, *all = NULL, *done = NULL;
    PyObject *args = PyTuple_Pack(2, view, handle->home->gone);
    if (args != NULL && (all = PyTuple_New(1)) != NULL)
        kept = core->kept->tp_new(core->kept, args, NULL);
    Py_XDECREF(args);
    /* That may have collected garbage, and so have run any code. */
    if (kept == NULL || handle->slot != slot || kept_view(handle) != view || slot_extra(slot) == NULL)
        goto done;
    ((Kept *)kept)->managed = Py_NewRef((PyObject *)((PyMemoryViewObject *)view)->mbuf);
    ((Kept *)kept)->place = Py_NewRef((PyObject *)slot);
    if (PySet_Add(core->haunted, (PyObject *)slot) ||
        PyDict_SetItem(handle->home->lingering, (PyObject *)slot, Py_None))
        goto done; /* what is in `haunted` in vain is only looked at in vain */
    if ((done = PyObject_CallMethodNoArgs(view, core->release)) == NULL) {
        PyDict_DelItem(handle->home->lingering, (PyObject *)slot);
        goto done;
    }
    PyTuple_SET_ITEM(all, 0, kept);
    slot->extra->kept = all;
    slot->extra->holder = NULL;
    handle->slot = NULL; /* the claim */
    handle->view = handle->pinned = NULL;
    kept = all = NULL;
    Py_DECREF(view);
    Py_DECREF(slot);
done:
    Py_XDECREF(kept);
    Py_XDECREF(all);
    return done;
}

/* The view has gone. Push its slot if it lingers for nothing else, and nobody watches; else `Home.view_gone` sees to it. */
static PyObject *kept_is_gone(PyObject *self, PyObject *ref)
{
    Origin *home = (Origin *)self;
    Magazine *magazine = home->magazine;
    Kept *kept = (Kept *)ref;
    if (magazine != NULL && PyObject_TypeCheck(ref, magazine->core->kept) && kept->place != NULL &&
        Py_TYPE(kept->place) == magazine->core->slot && home->lingering != NULL && magazine->watch == 0 &&
        Py_SIZE(magazine) < magazine->capacity && Py_REFCNT(kept->managed) == 1 && magazine->core->haunted != NULL) {
        Slot *slot = (Slot *)kept->place;
        PyObject *all = slot->extra == NULL ? NULL : slot->extra->kept;
        if (all != NULL && PyTuple_GET_SIZE(all) == 1 && PyTuple_GET_ITEM(all, 0) == ref &&
            PyDict_Contains(home->lingering, kept->place) > 0) {
            Py_INCREF(slot);
            if (PyDict_DelItem(home->lingering, (PyObject *)slot) ||
                PySet_Discard(magazine->core->haunted, (PyObject *)slot) < 0) {
                Py_DECREF(slot);
                return NULL;
            }
            slot->extra->kept = NULL;
            int failed = magazine_push(magazine, slot);
            Py_DECREF(all);
            return failed ? NULL : Py_NewRef(Py_None);
        }
    }
    if (magazine == NULL || magazine->core->view_gone == NULL)
        Py_RETURN_NONE;
    return PyObject_CallMethodOneArg(self, magazine->core->view_gone, ref);
}

PyMethodDef kept_gone = METHOD("gone", kept_is_gone, METH_O);

static int kept_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((Kept *)self)->managed);
    Py_VISIT(((Kept *)self)->place);
    return _PyWeakref_RefType.tp_traverse(self, visit, arg);
}

static int kept_clear(PyObject *self)
{
    Py_CLEAR(((Kept *)self)->managed);
    Py_CLEAR(((Kept *)self)->place);
    return _PyWeakref_RefType.tp_clear(self);
}

static void kept_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_CLEAR(((Kept *)self)->managed);
    Py_CLEAR(((Kept *)self)->place);
    _PyWeakref_RefType.tp_dealloc(self);
    Py_DECREF(type);
}

static PyMemberDef kept_members[] = {{"managed", T_OBJECT_EX, offsetof(Kept, managed), 0, NULL},
                                     {"place", T_OBJECT_EX, offsetof(Kept, place), 0, NULL},
                                     {NULL, 0, 0, 0, NULL}};
static PyType_Slot kept_slots[] = {{Py_tp_dealloc, kept_dealloc}, {Py_tp_traverse, kept_traverse},
                                   {Py_tp_clear, kept_clear},     {Py_tp_members, kept_members},
                                   {0, NULL}};
PyType_Spec kept_spec = {"aslab._fastpath._core.KeptView", sizeof(Kept), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                         kept_slots};
